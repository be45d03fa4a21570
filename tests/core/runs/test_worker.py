"""Several processes of one training end together, and the first that failed tells why."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import warm
from tiny_run import tiny_run
from waiting import until

from modelwright.core.runs.events import read_events

pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

RUN = tiny_run('train = { trainer = "pair", processes = 2 }')

# Process 0 waits for process 1, which never comes: the network library would wait for half an hour.
PLUGIN = """
import os
import signal
from modelwright import ModelwrightError, TrainerSpec, hookimpl

@hookimpl
def modelwright_trainers():
    yield TrainerSpec(name="pair", summary="", factory="pair_plugin:Pair", launcher="deepspeed")

class Pair:
    def __init__(self, options): pass

    def train(self, job):
        import torch
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
        if os.environ["RANK"] == "1":
            {fail}
        torch.distributed.barrier()
"""


@pytest.fixture
def run_pair(tmp_path, modelwright, install_plugin, home):
    """Runs the pair, whose second process does what the test sets; nobody is left afterwards."""

    def run(fail):
        install_plugin("pair-plugin", PLUGIN.format(fail=fail))
        path = tmp_path / "run.toml"
        path.write_text(RUN)
        done = modelwright("run", path)
        with (home / "runs" / "tiny" / "ranks.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert json.loads(modelwright("models", "list", "--json").stdout) == []
        return done

    return run


def test_the_error_of_the_process_that_failed_is_the_runs(run_pair):
    """Not that of the process that waited for it, whichever of them that is."""
    done = run_pair('raise ModelwrightError("its disk is full: free some")')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: its disk is full: free some (process 1 of 2)"


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_others(run_pair):
    """It can tell nothing itself; the line says where to look."""
    done = run_pair("os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert "train.log" in done.stderr.splitlines()[-1]


_FILL = """
            with open(job.folder / "filler", "wb", buffering=0) as file:
                while file.write(bytes(1 << 16)) == 1 << 16: pass
                while file.write(b"x"): pass
"""


@pytest.mark.long
def test_a_process_that_meets_a_full_disk_can_still_tell_so(run_pair, home, mounted, wording):
    """The room for that is set aside before."""
    mounted(home, "-o", "size=8m")
    done = run_pair(_FILL.strip())
    assert done.returncode == 1
    wording(done.stderr.splitlines()[-1])


LONG = tiny_run("""
[train]
trainer = "deepspeed"
processes = 2
max_steps = 4000
checkpoint_every = 10000
preflight = false
""")


def _when_training(home, process):
    """Waits for the third step; gives the launcher's processes and the training's, each by the time that they began."""

    def trains():
        events = read_events(home / "runs/tiny/events", stage="train")
        return any(event.kind == "step" and event.data["step"] == 3 for event in events)

    until(trains, process, every=0.1)
    lock = home / "runs/tiny/ranks.lock"
    ranks = [each for each in psutil.process_iter() if _has_open(each, lock)]
    session = os.getsid(ranks[0].pid)
    launcher = [each for each in psutil.process_iter() if os.getsid(each.pid) == session and each not in ranks]
    return launcher, sorted(ranks, key=lambda each: each.create_time())


def _has_open(process, file):
    with contextlib.suppress(psutil.Error):
        return str(file) in [each.path for each in process.open_files()]
    return False


@pytest.mark.long
@pytest.mark.parametrize("reached", ["launcher", "all"])
def test_a_signal_to_launcher_or_processes_stops_at_a_checkpoint(tmp_path, home, modelwright, reached):
    """A cluster ends a job by SIGTERM to all its processes; the same command goes on."""
    path = tmp_path / "run.toml"
    path.write_text(LONG)
    command = [sys.executable, "-m", "modelwright.core", "run", str(path)]
    process = warm.popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    launcher, ranks = _when_training(home, process)
    for each in launcher if reached == "launcher" else launcher + ranks:
        each.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    (checkpoint,) = (home / "runs/tiny/train/checkpoints").glob("step-*")
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"stopped on request after step {step} of 4000" in errors
    done = modelwright("run", path, "--only", "train", "--dry-run")
    assert f"resumes after step {step}" in done.stdout


@pytest.mark.long
def test_a_killed_process_is_not_a_request_to_stop(tmp_path, home):
    """Its launcher ends the others by a signal; that is a failure, reported soon."""
    path = tmp_path / "run.toml"
    path.write_text(LONG)
    command = [sys.executable, "-m", "modelwright.core", "run", str(path)]
    process = warm.popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    _, (_first, second) = _when_training(home, process)
    second.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "lost the connection to another process, which was killed" in errors.splitlines()[-1]
