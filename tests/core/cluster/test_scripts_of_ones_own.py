"""The scripts of examples/slurm, as somebody without the generator uses them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm")]

EXAMPLES = Path(__file__).parents[3] / "examples" / "slurm"

SUITES = """
models = "all"
[[evaluate]]
name = "sums"
path = "builtin:arithmetic/test"
format = "math"
metrics = ["math_accuracy"]
limit = 4
[evaluate.generation]
max_tokens = 4
"""


def test_an_array_prepares_a_job_trains_and_an_array_evaluates(
    slurm, run_file, tmp_path, home, modelwright, monkeypatch, warm_programs
):
    """As their heads say, but for what the nodes of the tests do not have."""
    monkeypatch.setenv("PATH", warm_programs)
    path = run_file()
    (tmp_path / "eval.toml").write_text(SUITES)
    for script in EXAMPLES.iterdir():
        shutil.copy(script, tmp_path)

    def sbatch(*arguments: str, **after: str) -> str:
        small = ["--nodes=1", "--cpus-per-task=1", "--mem=400M", "--gpus-per-node=0", "--time=10"]
        chain = [f"--dependency=afterok:{job}" for job in after.values()]
        command = ["sbatch", "--parsable", *small, *chain, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()

    parts = sbatch("--array=1-2", "prepare.sbatch", str(path))
    trained = sbatch("train.sbatch", str(path), after=parts)
    slurm.wait(trained)
    other = modelwright("models", "list", "--json")
    [model] = json.loads(other.stdout)
    assert model["name"] == "tiny"
    graded = sbatch("--array=1-2", "evaluate.sbatch", "eval.toml", "tiny", "tiny@1")
    slurm.wait(*(f"{graded}_{task}" for task in (1, 2)))
    logs = "\n".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert slurm.state(f"{graded}_1") == slurm.state(f"{graded}_2") == "COMPLETED", logs
    assert {folder.name for folder in (tmp_path / "results").iterdir()} == {"tiny", "tiny@1"}
    [model] = json.loads(modelwright("models", "list", "--json").stdout)
    assert model["metrics"]["sums"]["math_accuracy"]["n"] == 4
