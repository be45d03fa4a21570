"""A real Slurm of two nodes on this machine, and a tiny run to submit to it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
import warm
from tiny_run import tiny_run
from waiting import until

from modelwright.core.runs.events import read_events

REPOSITORY = Path(__file__).parents[3]
TOOL = REPOSITORY.parent / "shared" / "tools" / "mini-slurm.sh"

# Partitions: of which the jobs make way for those of another, that charges one account alone, that is for training.
EXTRA = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
EnforcePartLimits=ALL
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
PartitionName=paid Nodes=ALL AllowAccounts=good
PartitionName=gpu Nodes=ALL
"""

RUN = """
seed = 3
data.workers = 1
data.sources = [{ path = "builtin:arithmetic/train", limit = 100 }]
data.tokens.max_length = 128
train = { max_steps = 6, learning_rate = 1e-3 }
cluster = { time = "00:10:00", cpus = 1 }
"""


def not_installed(*programs: str) -> str | None:
    """The first program that is missing."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return next((program for program in programs if shutil.which(program, path=path) is None), None)


def _missing() -> str | None:
    if program := not_installed("slurmctld", "slurmd", "sbatch", "munged"):
        return f"{program} is not installed (Debian: slurm-wlm, munge)"
    return None if TOOL.is_file() else "mini-slurm.sh, which starts a cluster, is not beside this checkout"


@pytest.fixture(scope="session")
def start_cluster(tmp_path_factory):
    """Starts clusters; gives the configuration file of each."""
    if missing := _missing():
        pytest.skip(missing)
    started = []

    def start(nodes: int = 2, extra: str = EXTRA, **knobs: str) -> str:
        folder = tmp_path_factory.mktemp("slurm")
        environment = os.environ | {"MINI_SLURM_EXTRA": extra} | knobs
        done = subprocess.run(
            [TOOL, "start", folder, str(nodes)], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        started.append(folder)
        return str(folder / "slurm.conf")

    yield start
    for folder in started:
        subprocess.run([TOOL, "stop", folder], capture_output=True, check=True)


@pytest.fixture(scope="session")
def cluster(start_cluster):
    """The configuration file of the cluster that the tests share; each node has a GPU that is not there."""
    return start_cluster(MINI_SLURM_GPUS="1", MINI_SLURM_KILLWAIT="1")


@pytest.fixture(scope="session")
def warm_programs(tmp_path_factory) -> str:
    """The PATH of jobs whose `modelwright` has its imports already; without it, a job of a tiny run imports only."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "main.py").write_text(
        "import runpy\n\nrunpy.run_module('modelwright.core', run_name='__main__', alter_sys=True)\n"
    )
    program = folder / "modelwright"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(warm.stand_in(folder / "main.py"))} "$@"\n')
    program.chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


ENDED = "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL"


@pytest.fixture(scope="session")
def accounting_cluster(start_cluster):
    """The configuration file of a cluster that keeps accounts."""
    if program := not_installed("slurmdbd", "mariadbd", "mariadb-install-db"):
        pytest.skip(f"{program} is not installed (Debian: slurmdbd, mariadb-server)")
    return start_cluster(nodes=1, extra="", MINI_SLURM_DBD="1")


class Slurm:
    """What a person at the cluster does."""

    def __init__(self, modelwright, home: Path) -> None:
        self.modelwright = modelwright
        self.home = home

    def submit(self, *arguments: object) -> dict[tuple[str, str], str]:
        """The jobs' ids, by run and stage."""
        done = self.modelwright("submit", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return {(row["run"], row["stage"]): row["job"] for row in json.loads(done.stdout)}

    def jobs(self, *runs: object) -> list[dict]:
        """What `jobs --json` tells."""
        done = self.modelwright("jobs", *runs, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def record(self, job: str) -> str:
        """All that Slurm knows of a job."""
        return _output("scontrol", "show", "job", job)

    def state(self, job: str) -> str:
        return _output("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def wait(
        self, *jobs: str, states: str = "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL", seconds: float = 180
    ) -> None:
        """Until each job is in one of the states."""

        def said() -> str:
            return _output("scontrol", "show", "job") + self._logs()

        until(lambda: all(self.state(job) in states.split() for job in jobs), seconds=seconds, every=0.1, said=said)

    def wait_for_step(self, run: str, step: int, *, seconds: float = 180) -> None:
        """Wait until a training has done this number of steps."""
        folder = self.home / "runs" / run / "events"

        def there() -> bool:
            events = read_events(folder, stage="train")
            return any(event.kind == "step" and event.data["step"] >= step for event in events)

        until(there, seconds=seconds, every=0.1, said=self._logs)

    def _logs(self) -> str:
        return "\n".join(path.read_text() for path in self.home.glob("runs/*/slurm/*.log"))

    def begin_again(self, job: str) -> None:
        """A job that was queued again would wait for two minutes; a node refuses it while it clears up after it."""
        self.wait(job, states="PENDING")
        time.sleep(2)  # a node that still clears up after the job lets it fail, and does not say when it is done

        def runs() -> bool:
            if self.state(job) == "RUNNING":
                return True
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True, check=False)
            return False

        until(runs, every=0.3, said=lambda: self.record(job))

    def signal_as_the_limit_would(self, job: str) -> None:
        """Slurm looks at time limits twice a minute; this is what it sends then."""
        _output("scancel", "--batch", "--signal=USR1", job)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def slurm(cluster, modelwright, home, monkeypatch) -> Slurm:
    """This test's Slurm; no job of it is left for the next test."""
    monkeypatch.setenv("SLURM_CONF", cluster)
    yield Slurm(modelwright, home)
    _output("scancel", "--user=root" if os.geteuid() == 0 else f"--user={os.environ['USER']}")
    give_up = time.monotonic() + 30
    while _output("squeue", "--noheader") and time.monotonic() < give_up:
        time.sleep(0.1)


@pytest.fixture
def run_file(tmp_path, warm_programs):
    """Writes a run file for a cluster, with changes laid over it; `cold`: whether its jobs start as anybody's do."""

    def write(*changes: str, cold: bool = False) -> Path:
        path = tmp_path / "run.toml"
        programs = "" if cold else tomli_w.dumps({"cluster": {"environment": {"PATH": warm_programs}}})
        path.write_text(tiny_run(RUN, programs, *changes))
        return path

    return write
