"""The plugin of the README, built and installed from a folder as its author would, and used by a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"

RUN = """
name = "trivia"
[model.scratch]
hidden_size = 16
layers = 1
heads = 2
[data]
format = "trivia"
[[data.sources]]
path = "rows.jsonl"
[data.tokens]
max_length = 64
[train]
max_steps = 3
batch_size = 4
[[evaluate]]
name = "letters"
path = "rows.jsonl"
metrics = ["starts_right"]
[evaluate.generation]
max_tokens = 4
"""


def _block(language: str, holding: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if holding in block)


@pytest.fixture
def installed_plugin(tmp_path, monkeypatch) -> Path:
    folder, site = tmp_path / "my-plugin", tmp_path / "site-packages"
    folder.mkdir()
    (folder / "my_plugin.py").write_text(_block("python", "# my_plugin.py"))
    build = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    (folder / "pyproject.toml").write_text(build + _block("toml", "my-plugin"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", site, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    return site


def test_an_installed_package_adds_a_format_and_a_metric_that_a_run_uses(
    installed_plugin, modelwright, tmp_path, rows_file
):
    """Installing is all that it takes."""
    listed = json.loads(modelwright("plugins", "list", "--json").stdout)
    [mine] = [row for row in listed if row["plugin"] == "my_plugin"]
    assert (mine["distribution"], mine["version"], mine["status"]) == ("my-plugin", "1.0", "loaded")
    assert mine["components"] == [{"kind": "format", "name": "trivia"}, {"kind": "metric", "name": "starts_right"}]

    rows_file(tmp_path / "rows.jsonl", [{"ask": f"what is {n}?", "reply": f"{n} it is"} for n in range(40)])
    (tmp_path / "run.toml").write_text(RUN)
    done = modelwright("run", "run.toml")
    assert done.returncode == 0, done.stderr
    [model] = json.loads(modelwright("models", "list", "--json").stdout)
    assert model["metrics"]["letters"]["starts_right"]["n"] == 40

    rows_file(tmp_path / "rows.jsonl", [{"ask": "what?"}] * 3)
    refused = modelwright("run", "run.toml", "--fresh")
    assert refused.returncode == 1
    assert "expected the columns ask and reply, found ask" in refused.stderr
