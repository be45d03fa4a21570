# Everything here works from a fresh clone: the virtual environment is made on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Parallel test processes share the cores; a thread each keeps them from spinning against one another.
JOBS   ?= 2
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

.PHONY: quickstart test test-all lint types arrows proto check-proto docs wheel clean

quickstart: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py

# Every behaviour.
test: $(VENV)/.installed
	$(PYTEST) -m "not long"

# With it the long ones: Slurm, kills at every stage, worlds of several processes, the documentation's pages, sweeps.
test-all: $(VENV)/.installed
	$(PYTEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

arrows: $(VENV)/.installed
	$(BIN)/lint-imports

proto:
	$(PYTHON) protos/generate.py

check-proto:
	$(PYTHON) protos/generate.py --check

# The reference is generated from the source first, so that a build is never of an older one.
docs: $(VENV)/.installed
	$(BIN)/python docs/reference/generate.py
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

wheel: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build

# torch first and pinned, so that no other package chooses its build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build .modelwright src/*.egg-info
