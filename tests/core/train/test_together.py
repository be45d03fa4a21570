"""Several processes of one training end together, and the first that failed tells why."""

from __future__ import annotations

import fcntl
import json

import pytest

pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

RUN = """
name = "tiny"
[model.scratch]
hidden_size = 16
layers = 1
heads = 2
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
limit = 40
[train]
trainer = "pair"
processes = 2
max_steps = 2
batch_size = 4
"""

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
    """Runs the pair, whose second process does what it is told; nobody is left afterwards."""

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


def test_a_process_that_is_killed_ends_the_others(run_pair):
    """It can tell nothing itself; the line says where to look."""
    done = run_pair("os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert "train.log" in done.stderr.splitlines()[-1]
