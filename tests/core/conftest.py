"""One finished run that tests copy, and the command line in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_run import tiny_run

from modelwright.core.cli import main

# Every stage has something to do; training takes a second.
WHOLE = """
seed = 3
[data.sources]
[train]
max_steps = 10
learning_rate = 1e-3
checkpoint_every = 5
[[evaluate]]
name = "sums"
path = "builtin:arithmetic/test"
metrics = ["math_accuracy", "exact_match"]
limit = 20
[evaluate.generation]
max_tokens = 8
[registry]
promote = { alias = "production", if = "sums.math_accuracy >= 0.0" }
""".replace("[data.sources]\n", "")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]):
    """Runs the command line in this process; the worker processes of a run are processes all the same."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the run `WHOLE`, finished; for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "run.toml").write_text(tiny_run(WHOLE))
    before = os.environ.get("MODELWRIGHT_HOME")
    os.environ["MODELWRIGHT_HOME"] = str(folder / "home")
    try:
        main(["run", str(folder / "run.toml")])
    except SystemExit as end:
        assert not end.code
    finally:
        if before is None:
            del os.environ["MODELWRIGHT_HOME"]
        else:
            os.environ["MODELWRIGHT_HOME"] = before
    return folder / "home"


@pytest.fixture
def finished(finished_home: Path, home: Path, tmp_path: Path) -> Path:
    """The run file of a finished run, whose home is a copy of this test's own."""
    shutil.copytree(finished_home, home, symlinks=True)
    path = tmp_path / "run.toml"
    path.write_text(tiny_run(WHOLE))
    return path
