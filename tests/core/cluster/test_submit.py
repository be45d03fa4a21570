"""What is submitted: scripts that say what they do, in a chain."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import tomli_w

from modelwright.core.api import files
from modelwright.core.runs.events import EventTail

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm")]


def _prepared(home: Path, run: str) -> str:
    """The digest of all that a preparation gave to the training."""
    manifest = {
        name: entry
        for name, entry in files.folder_manifest(home / "runs" / run / "prepare").items()
        if name.startswith(("train", "tokenizer"))
    }
    assert manifest
    return files.manifest_digest(manifest)


def test_an_array_of_four_jobs_prepares_the_same_bytes_as_one_process(
    slurm, run_file, rows_file, tmp_path, modelwright, home, monkeypatch
):
    """The merge waits for all four, and reads none of the rows again."""
    for number in range(8):
        rows = [{"question": f"{number} + {each}?", "answer": f"#### {number + each}"} for each in range(50)]
        rows_file(tmp_path / f"data-{number}.jsonl", rows)
    path = run_file("prepare_shards = 4\n", path=f'"{tmp_path}/data-*.jsonl"')
    jobs = slurm.submit(path)
    assert list(jobs) == [("tiny", stage) for stage in ("prepare-shards", "prepare", "train", "register")]
    slurm.wait(jobs["tiny", "register"])
    shown = slurm.jobs("tiny")
    assert [(job["stage"], job["job"].partition("_")[2], job["state"]) for job in shown] == [
        *[("prepare-shards", str(number), "COMPLETED") for number in range(1, 5)],
        *[(stage, "", "COMPLETED") for stage in ("prepare", "train", "register")],
    ]
    done = json.loads((home / "runs" / "tiny" / "done" / "prepare.json").read_text())["outputs"]
    monkeypatch.setenv("MODELWRIGHT_HOME", str(tmp_path / "alone"))
    alone = modelwright("prepare", path)
    assert alone.returncode == 0, alone.stderr
    single = json.loads((tmp_path / "alone" / "runs" / "tiny" / "done" / "prepare.json").read_text())["outputs"]
    assert done["digest"] == single["digest"]
    assert _prepared(home, "tiny") == _prepared(tmp_path / "alone", "tiny")


def test_a_submitted_run_is_what_it_was_when_it_was_submitted(slurm, run_file, home, tmp_path):
    """Editing the file while jobs wait changes the next submission, not this one."""
    path = run_file('setup = ["while [ ! -e edited ]; do sleep 0.1; done"]\n')
    jobs = slurm.submit(path, "--set", "train.max_steps=2")
    path.write_text("not even a configuration")
    (tmp_path / "edited").touch()
    slurm.wait(*jobs.values())
    assert [job["state"] for job in slurm.jobs("tiny")] == ["COMPLETED"] * 3
    steps = [event.data["step"] for event in EventTail(home / "runs/tiny/events").poll() if event.kind == "step"]
    assert steps == [1, 2]


def test_names_of_all_kinds_reach_slurm_and_the_shell_as_they_are(slurm, run_file, tmp_path, home, monkeypatch):
    """Blanks, quotes, percent signs and dollars in paths and values."""
    odd = tmp_path / "a b%j'c$d"
    odd.mkdir()
    monkeypatch.setenv("MODELWRIGHT_HOME", str(odd))
    values = {
        "container": "env CONTAINED=yes",
        "environment": {"GREETING": "it's $HOME"},
        "setup": ["""test "$GREETING" = "it's \\$HOME" """],
        "sbatch": {"comment": """two "words" # and 'more' \\ of them""", "nice": "7", "exclusive": ""},
    }
    path = run_file(tomli_w.dumps({"cluster": values}).replace("[cluster]\n", ""))
    slurm.home = odd
    jobs = slurm.submit(path)
    slurm.wait(jobs["tiny", "prepare"])
    prepare, *_ = slurm.jobs("tiny")
    assert prepare["state"] == "COMPLETED", prepare
    assert Path(prepare["log"]).is_file()
    shown = subprocess.run(
        ["scontrol", "show", "job", jobs["tiny", "train"]], capture_output=True, text=True, check=True
    ).stdout
    assert "Nice=7" in shown
    assert f"Comment={values['sbatch']['comment']}" in shown
    assert "JobName=tiny/train" in shown
