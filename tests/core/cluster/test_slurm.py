"""What Slurm's commands say, as one type: the queue and the accounts agree."""

from __future__ import annotations

import subprocess
import time

import pytest

from modelwright.core.cluster import slurm

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm")]


def _sbatch(*arguments: str) -> str:
    command = ["sbatch", "--parsable", "--mem=100M", "--output=/dev/null", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _until(condition, *, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_the_accounts_agree_with_the_queue(accounting_cluster, monkeypatch):
    """A job that failed, one that was killed, those that waited for them, tasks of an array, and a cancelled one."""
    monkeypatch.setenv("SLURM_CONF", accounting_cluster)
    failed = _sbatch("--wrap=exit 3")
    dependant = _sbatch(f"--dependency=afterok:{failed}", "--kill-on-invalid-dep=yes", "--wrap=true")
    killed = _sbatch("--wrap=kill -9 $$")
    array = _sbatch("--array=1-2", "--wrap=true")
    cancelled = _sbatch("--wrap=sleep 60")
    jobs = [failed, dependant, killed, array, cancelled]
    _until(lambda: slurm.queued(jobs)[cancelled].state == "RUNNING")
    slurm.cancel([cancelled])
    expected = {
        failed: ("FAILED", 3),
        dependant: ("CANCELLED", None),
        killed: ("FAILED", 137),
        f"{array}_1": ("COMPLETED", 0),
        f"{array}_2": ("COMPLETED", 0),
        cancelled: ("CANCELLED", None),
    }

    def states(ask):
        return {job: (found.state, found.exit_code) for job, found in ask(jobs).items()}

    _until(lambda: states(slurm.queued) == expected)
    _until(lambda: states(slurm.accounted) == expected)
    queue, accounts = slurm.queued(jobs), slurm.accounted(jobs)
    assert {job: found.nodes for job, found in queue.items()} == {job: found.nodes for job, found in accounts.items()}
    assert slurm.queued(["999999"]) == slurm.accounted(["999999"]) == {}


def test_a_controller_that_does_not_answer_is_one_line(tmp_path, monkeypatch, modelwright, run_file):
    """The configuration of a cluster that is gone."""
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nMessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    if subprocess.run(["which", "sbatch"], capture_output=True, check=False).returncode != 0:
        pytest.skip("sbatch is not installed (Debian: slurm-wlm)")
    done = modelwright("submit", run_file())
    assert done.returncode in (1, 2)
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Slurm" in line
