"""What is submitted: scripts that say what they do, in a chain."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import tomli_w
from waiting import until

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
    path = run_file(f"cluster.prepare_shards = 4\ndata.sources = [{{ path = '{tmp_path}/data-*.jsonl', limit = 100 }}]")
    jobs = slurm.submit(path)
    assert list(jobs) == [("tiny", stage) for stage in ("prepare-shards", "prepare", "train", "register")]
    slurm.wait(jobs["tiny", "prepare"])
    shown = slurm.jobs("tiny")
    assert [(job["stage"], job["job"].partition("_")[2], job["state"]) for job in shown[:5]] == [
        *[("prepare-shards", str(number), "COMPLETED") for number in range(1, 5)],
        ("prepare", "", "COMPLETED"),
    ]
    done = json.loads((home / "runs" / "tiny" / "done" / "prepare.json").read_text())["outputs"]
    monkeypatch.setenv("MODELWRIGHT_HOME", str(tmp_path / "alone"))
    alone = modelwright("prepare", path)
    assert alone.returncode == 0, alone.stderr
    single = json.loads((tmp_path / "alone" / "runs" / "tiny" / "done" / "prepare.json").read_text())["outputs"]
    assert done["digest"] == single["digest"]
    assert _prepared(home, "tiny") == _prepared(tmp_path / "alone", "tiny")


# A job's own log says in which order it was set up; `module` and Apptainer are not installed here.
SETTING_UP = r"""
[cluster]
one_job = true
login_shell = true
prologue = ["shopt -q login_shell && echo logged in", "module() { echo module $*; }"]
modules = ["cuda/12.8"]
environment = { GREETING = "hello" }
copy_to_nodes = ["FOLDER/env.tar.gz", "FOLDER/images"]
local_folder = "FOLDER/local-$GREETING"
setup = [
    "while [ ! -e edited ]; do sleep 0.1; done",
    "echo set up with $(cd $MODELWRIGHT_LOCAL && echo *)",
    "apptainer() { [ $1 = exec ] && echo in $3 && shift 3 && \"$@\"; }",
]
container = "apptainer exec --nv $(basename $MODELWRIGHT_LOCAL/images/*)"
"""


def test_one_job_sets_up_its_node_and_runs_what_was_submitted(slurm, run_file, home, tmp_path, modelwright):
    """Editing the file while it waits changes the next submission, not this one."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train.sif").touch()
    (tmp_path / "env").touch()
    subprocess.run(["tar", "-czf", "env.tar.gz", "env"], cwd=tmp_path, check=True)
    path = run_file(SETTING_UP.replace("FOLDER", str(tmp_path)))
    jobs = slurm.submit(path, "--set", "train.max_steps=2")
    assert list(jobs) == [("tiny", "run")]
    path.write_text("not even a configuration")
    (tmp_path / "edited").touch()
    followed = modelwright("jobs", "logs", "tiny", "--follow")
    assert followed.returncode == 0, followed.stderr
    order = ["logged in", "module load cuda/12.8", "set up with env images", "in train.sif"]
    assert [line for line in followed.stdout.splitlines() if line in order] == order
    assert "Registry:" in followed.stdout, "followed to its end"
    assert [(job["stage"], job["state"]) for job in slurm.jobs()] == [("run", "COMPLETED")]
    until(lambda: not list((tmp_path / "local-hello").iterdir()))
    assert json.loads(modelwright("models", "list", "--json").stdout)[0]["name"] == "tiny"
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
        "sbatch": {"comment": """two "words" # and 'more' \\ of them""", "nice": "7"},
        "train": {"gpus_per_node": 1, "partition": "gpu", "sbatch": {"exclusive": ""}},
    }
    path = run_file(tomli_w.dumps({"cluster": values}), cold=True)
    slurm.home = odd
    jobs = slurm.submit(path)
    slurm.wait(jobs["tiny", "prepare"])
    prepare, *_ = slurm.jobs("tiny")
    assert prepare["state"] == "COMPLETED", prepare
    assert Path(prepare["log"]).is_file()
    shown = slurm.record(jobs["tiny", "train"])
    assert "TresPerNode=gres:gpu:1" in shown
    assert "OverSubscribe=NO" in shown
    assert "Nice=7" in shown
    assert f"Comment={values['sbatch']['comment']}" in shown
    assert "JobName=tiny/train" in shown
