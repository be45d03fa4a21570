"""Two nodes: from one submit to registered models, and what a death on one of them leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

from modelwright.core.runs.events import read_events

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm")]

pytest.importorskip("deepspeed", reason="the trainer of many processes needs DeepSpeed")

# One variant is started by srun, as with Pyxis, the other by DeepSpeed's launcher.
NODES = """
cluster = { nodes = 2, train.partition = "gpu" }
[train]
trainer = "deepspeed"
options.zero_stage = 2
[[evaluate]]
name = "sums"
path = "builtin:arithmetic/test"
metrics = ["math_accuracy"]
limit = 4
[evaluate.generation]
max_tokens = 4
[registry]
promote = { alias = "best" }
[variants.short]
train = { max_steps = 3 }
registry = { promote = { alias = "shortest" } }
cluster = { srun = { label = "" }, copy_to_nodes = ["run.toml"], container = "env COPY=$(ls $MODELWRIGHT_LOCAL)" }
[variants.long]
"""


@pytest.fixture
def two_nodes(run_file):
    return run_file(NODES)


def test_one_submit_trains_two_variants_on_two_nodes_and_registers_both(slurm, two_nodes, modelwright, home):
    """ZeRO-2 over a process on each node; each variant has its chain, and both write into one registry.

    The partition with GPUs is for training alone.
    """
    jobs = slurm.submit(two_nodes)
    stages = ["prepare", "train", "register", "evaluate", "promote"]
    assert list(jobs) == [(run, stage) for run in ("tiny-short", "tiny-long") for stage in stages]
    slurm.wait(*jobs.values(), seconds=300)  # DeepSpeed compiles a part of its own where it was never used before

    shown = slurm.jobs()
    assert [(job["run"], job["stage"], job["state"]) for job in shown] == [
        (run, stage, "COMPLETED") for run in ("tiny-long", "tiny-short") for stage in stages
    ], shown
    assert [job["nodes"] for job in shown if job["stage"] == "train"] == ["n[1-2]"] * 2
    assert {stage for (_, stage), job in jobs.items() if "Partition=gpu " in slurm.record(job)} == {"train"}
    models = {model["name"]: model for model in json.loads(modelwright("models", "list", "--json").stdout)}
    assert {name: (model["version"], model["aliases"]) for name, model in models.items()} == {
        "tiny-short": (1, ["shortest"]),
        "tiny-long": (1, ["best"]),
    }
    assert all(model["metrics"]["sums"]["math_accuracy"]["n"] == 4 for model in models.values())
    for run in ("tiny-short", "tiny-long"):
        started = [event for event in read_events(home / "runs" / run / "events") if event.kind == "started"]
        assert [event.data["processes"] for event in started] == [2]


def _rank(number: int, run: str) -> int:
    """The process of a rank of a run."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0")
            environment = (entry / "environ").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if words[-2:-1] == [run] and f"RANK={number}" in environment:
            return int(entry.name)
    raise AssertionError(f"there is no process {number} of {run}")


def test_a_death_on_one_node_ends_the_other_and_is_named_and_nothing_is_registered(slurm, two_nodes, modelwright, home):
    """The dependants are cancelled."""
    jobs = slurm.submit(two_nodes, "--variant", "long", "--set", "train.max_steps=100000")
    train = jobs["tiny-long", "train"]
    slurm.wait_for_step("tiny-long", 2)
    os.kill(_rank(1, "tiny-long"), signal.SIGKILL)
    slurm.wait(*jobs.values())
    _, shown, *dependants = slurm.jobs(two_nodes)
    assert shown["state"] == "FAILED"
    assert shown["why"].startswith(
        "train: node n2 failed first (a process was killed by SIGKILL), and the others were stopped"
    )
    assert str(home / "runs" / "tiny-long" / "logs" / "train.log") in shown["why"]
    assert [job["state"] for job in dependants] == ["CANCELLED"] * 3
    assert {job["why"] for job in dependants} == {f"train ({train}) did not succeed: FAILED"}
    assert json.loads(modelwright("models", "list", "--json").stdout) == []


def test_a_runner_that_is_killed_takes_the_processes_of_all_nodes_with_it(
    slurm, two_nodes, modelwright, home, tmp_path
):
    """In a shell that salloc gave, where no job ends with the runner: its pipe closes."""
    more = ("--variant", "long", "--set", "train.max_steps=100000")
    prepared = modelwright("prepare", two_nodes, *more)
    assert prepared.returncode == 0, prepared.stderr
    train = [sys.executable, "-m", "modelwright.core", "train", two_nodes, *more]
    allocation = subprocess.Popen(
        ["salloc", "--nodes=2", "--cpus-per-task=1", "--mem=800M", *train],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    slurm.wait_for_step("tiny-long", 2)
    ranks = [_rank(number, "tiny-long") for number in (0, 1)]
    shown = subprocess.run(["pgrep", "--parent", str(allocation.pid)], capture_output=True, text=True, check=True)
    os.kill(int(shown.stdout), signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), seconds=60)
    allocation.communicate(timeout=60)
    plan = json.loads(modelwright("run", two_nodes, *more, "--dry-run", "--json").stdout)["tiny-long"]
    assert plan[1]["why"].startswith("interrupted") or plan[1]["why"] == "not done yet"
