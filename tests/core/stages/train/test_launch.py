"""How a training is started inside a Slurm job, from the job's environment."""

from __future__ import annotations

import pytest

from modelwright.core.api.errors import UsageError
from modelwright.core.config import ClusterConfig
from modelwright.core.runs.events import WORKER, EventWriter
from modelwright.core.runs.folder import RunFolder
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


def test_on_one_node_of_a_job_the_cluster_table_says_how_many_processes(job, tmp_path, monkeypatch):
    """Outside of a job, `[train]` does; the cores that a task has are shared among its processes."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    cluster = ClusterConfig(processes_per_node=4)

    def threads_and_processes():
        launch = training_launch(RunFolder(tmp_path), "deepspeed", 1, cluster)
        return launch.command[launch.command.index("--num_gpus") + 1], launch.environment["OMP_NUM_THREADS"]

    assert threads_and_processes() == ("4", "3")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert threads_and_processes()[0] == "1"


def test_a_job_of_fewer_nodes_than_the_file_asks_for_is_one_line(job, tmp_path):
    """As when the script was changed, or an allocation was made by hand."""
    with pytest.raises(UsageError, match=r"\[cluster\] nodes is 2, but job 77 has 1"):
        training_launch(RunFolder(tmp_path), "deepspeed", 1, ClusterConfig(nodes=2))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "srun: error: n2: task 1: Exited with exit code 247",
            "node n2 failed first (a process was killed by SIGKILL)",
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
