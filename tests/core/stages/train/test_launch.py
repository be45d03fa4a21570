"""How a training is started inside a Slurm job, from the job's environment."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess

import pytest

from modelwright.core.api.devices import Accelerators
from modelwright.core.api.errors import UsageError
from modelwright.core.config import ClusterConfig
from modelwright.core.runs.events import WORKER, EventWriter
from modelwright.core.runs.folder import RunFolder
from modelwright.core.stages.train import launch
from modelwright.core.stages.train.launch import has_not_advanced, node_that_failed, training_launch


@pytest.fixture
def job(monkeypatch):
    """The environment of a job of one node."""
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(name, value)


def world(command):
    """The devices of each machine that a command line of DeepSpeed's launcher names."""
    (argument,) = (each.removeprefix("--world_info=") for each in command if each.startswith("--world_info="))
    return json.loads(base64.urlsafe_b64decode(argument))


@pytest.fixture
def gpus(monkeypatch):
    """Makes this a machine on which torch sees some GPUs."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)

    def see(count, visible):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(launch, "ask_torch", lambda: Accelerators(kind="cuda", count=count, installed=8))

    return see


def test_the_visible_gpus_are_the_ones_that_train(gpus, tmp_path):
    """Those that are named, one for each process, and not as many from the first on."""
    for visible, processes, expected in (("4,5", "auto", ["4", "5"]), ("GPU-b,GPU-a", 1, ["GPU-b"])):
        gpus(2, visible)
        started = training_launch(RunFolder(tmp_path), "deepspeed", processes)
        assert world(started.command) == {"localhost": expected}
        assert "DS_ACCELERATOR" not in started.environment
    gpus(1, "4,9")
    with pytest.raises(UsageError, match="device 9 does not exist"):
        training_launch(RunFolder(tmp_path), "deepspeed", "auto")


def test_each_node_names_its_own_gpus(monkeypatch, job, gpus, tmp_path):
    """The environment of a node decides there: Slurm may have given it other GPUs than the first."""
    gpus(2, "0,1")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setattr(launch, "_scontrol", lambda *words: "n1\nn2" if "hostnames" in words else "NodeAddr=10.0.0.1")
    command = training_launch(RunFolder(tmp_path), "deepspeed", 1, ClusterConfig(nodes=2, processes_per_node=2)).command
    assert command[:2] == ["srun", "--nodes=2"]
    there = shlex.split(command[-1].replace('"$SLURM_NODEID"', "1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,3")
    launcher = launch.on_node(there[there.index(launch.__name__) + 1 :])
    assert world(launcher) == {"n1": ["6", "3"], "n2": ["6", "3"]}
    assert {"--node_rank=1", "--master_addr=10.0.0.1", launch.MODULE} < set(launcher)


@pytest.mark.long
def test_deepspeeds_launcher_passes_the_names_of_gpus_on(monkeypatch, gpus, tmp_path):
    """On CPU ranks that write their environment down: numbers and names as they are, in their order."""
    (tmp_path / "writes_environment.py").write_text(
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'rank' + os.environ['RANK']).write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    monkeypatch.setattr(launch, "MODULE", "writes_environment")
    gpus(2, "GPU-b,4")
    started = training_launch(RunFolder(tmp_path), "deepspeed", 2)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DS_ACCELERATOR": "cpu"}
    subprocess.run(started.command, env=environment, check=True, timeout=120)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["GPU-b,4"] * 2


def test_on_one_node_of_a_job_the_cluster_table_says_how_many_processes(job, tmp_path, monkeypatch):
    """Outside of a job, `[train]` does; the cores that a task has are shared among its processes."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    cluster = ClusterConfig(processes_per_node=4)

    def threads_and_processes():
        started = training_launch(RunFolder(tmp_path), "deepspeed", 1, cluster)
        return world(started.command), started.environment["OMP_NUM_THREADS"]

    assert threads_and_processes() == ({"localhost": ["0", "1", "2", "3"]}, "3")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert threads_and_processes()[0] == {"localhost": ["0"]}


def test_a_job_of_fewer_nodes_than_the_file_asks_for_is_one_line(job, tmp_path):
    """As when the script was changed, or an allocation was made by hand."""
    with pytest.raises(UsageError, match=r"\[cluster\] nodes is 2, but job 77 has 1"):
        training_launch(RunFolder(tmp_path), "deepspeed", 1, ClusterConfig(nodes=2))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "srun: error: n2: task 1: Exited with exit code 247",
            "node n2 failed first (a process was killed by SIGKILL, probably out of memory)",
        ),
        (
            "srun: error: n2: task 1: Exited with exit code 134",
            "node n2 failed first (a process was killed by SIGABRT)",
        ),
        ("srun: error: gpu[03-04]: tasks 0-1: Killed", None),
        ("srun: error: gpu03: task 5: Out Of Memory", "node gpu03 failed first (out Of Memory)"),
        ("srun: error: n1: task 0: Exited with exit code 1", "node n1 failed first (exited with exit code 1)"),
        ("loss 3.2", None),
    ],
)
def test_the_node_that_failed_first_is_found_in_the_output_of_srun(tmp_path, said, expected):
    """Nodes that were ended because of it come after it; the output of earlier attempts is before `begin`."""
    log = tmp_path / "train.log"
    old = "srun: error: n9: task 9: Killed\n"
    log.write_text(f"{old}step 1\n{said}\nsrun: error: n7: task 7: Terminated\n" if expected else f"{old}{said}\n")
    found = node_that_failed(log, len(old))
    assert found == (expected and f"{expected}, and the others were stopped")


def test_jobs_that_end_before_a_single_step_are_not_queued_again_for_ever(tmp_path, monkeypatch, job):
    """Three in a row: the time limit is too short for a step, or for what comes before it."""
    folder = RunFolder(tmp_path, "tiny")

    def attempt(*kinds):
        events = EventWriter(folder.events, run="tiny", stage="train", role=WORKER)
        for kind in kinds:
            events.emit(kind, {"step": 1})
        events.close()

    for _ in range(3):
        attempt("started")
    attempt("started", "step")
    attempt("resumed")
    attempt("resumed")
    assert has_not_advanced(folder) is None
    attempt("resumed")
    assert has_not_advanced(folder) == (
        "tiny: 3 jobs in a row were stopped before they finished a step: raise [cluster] time"
    )
    monkeypatch.delenv("SLURM_JOB_ID")
    assert has_not_advanced(folder) is None, "a person may stop a run as often as they like"
