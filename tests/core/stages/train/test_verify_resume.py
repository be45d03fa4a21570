"""`modelwright train --verify-resume`: real trainings, really killed, by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from tiny_run import tiny_run

RUN = tiny_run("""
[train]
max_steps = 20
learning_rate = 1e-2
early_stopping = 1
[data.holdout]
fraction = 0.1
""")

EXACT = {
    "run": "tiny",
    "steps": 8,
    "kills": 2,
    "same_examples": True,
    "same_losses": True,
    "same_bytes": True,
    "relative_difference": 0.0,
    "exact_promised": True,
    "passed": True,
}

# Writes one number as its weights; what it is depends on how it was resumed, or on nothing but the steps.
PLUGIN = """
import time
from modelwright import Trained, TrainerSpec, hookimpl
from modelwright.core.api import files

@hookimpl
def modelwright_trainers():
    yield TrainerSpec(name="odd", summary="", factory="odd_plugin:Odd")

class Odd:
    def __init__(self, options): pass

    def train(self, job):
        import torch
        from safetensors.torch import save_file
        state = job.folder / "odd.json"
        begun, value = files.read_json(state) or (0, 1.0)
        job.emit("started", {"step": 0, "steps": job.settings.max_steps, "parameters": 1, "device": "DEVICE"})
        if begun:
            job.emit("resumed", {"step": begun})
            value += FORGOTTEN
        for step in range(begun + 1, job.settings.max_steps + 1):
            value *= 1.5
            job.emit("KIND", {"step": step, "steps": job.settings.max_steps, "loss": value, "tokens": 1, "seconds": 1})
            files.write_json(state, [step, value])
        with files.writing_folder(job.output) as folder:
            files.write_json(folder / "config.json", {})
            save_file({"w": torch.tensor([value])}, folder / "model.safetensors")
        return Trained(finished=True, step=step, steps=step, loss=value)
"""


@pytest.fixture
def run_file(tmp_path, modelwright):
    """A run whose tokens are prepared."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    prepared = modelwright("prepare", path)
    assert prepared.returncode == 0, prepared.stderr
    return path


@pytest.fixture
def odd(install_plugin):
    """Installs a trainer that adds `forgotten` to its weight where it resumes."""

    def install(forgotten, *, device="cpu", kind="step"):
        source = PLUGIN.replace("FORGOTTEN", str(forgotten)).replace("DEVICE", device).replace("KIND", kind)
        install_plugin("odd-plugin", source)
        return ("--set", 'train.trainer="odd"')

    return install


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def verified(done):
    (one,) = json.loads(done.stdout)
    return one


@pytest.mark.long
def test_a_training_resumes_to_the_same_bytes_and_the_runs_own_is_not_touched(run_file, modelwright, home):
    """On one process; the folders that were made for it are gone, and the run's own training is what it was."""
    assert modelwright("train", run_file).returncode == 0
    folder = home / "runs" / "tiny"
    before = files_of(folder)
    done = modelwright("train", run_file, "--verify-resume", "--json")
    assert done.returncode == 0, done.stderr
    assert verified(done) == EXACT
    assert "tiny:killed train    resumes after step 2" in done.stderr
    assert "tiny:killed train    resumes after step 4" in done.stderr
    assert not (folder / "verify").exists()
    after = files_of(folder)
    locks = {folder / name for name in ("runner.lock", "workers.lock", "ranks.lock")}
    assert {path: when for path, when in after.items() if path not in locks} == {
        path: when for path, when in before.items() if path not in locks
    }


@pytest.mark.long
def test_two_processes_of_deepspeed_resume_to_the_same_bytes(run_file, modelwright, home):
    """All of them are killed, their launcher included."""
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    trainer = ("--set", 'train.trainer="deepspeed"', "--set", "train.processes=2")
    done = modelwright("train", run_file, "--verify-resume", "--json", *trainer)
    assert done.returncode == 0, done.stderr
    assert verified(done) == EXACT
    assert done.stderr.count("tiny:killed train    resumes after step") == 2
    assert not (home / "runs" / "tiny" / "verify").exists()
    assert not (home / "runs" / "tiny" / "train").exists()


def test_a_trainer_that_resumes_differently_is_reported(run_file, modelwright, odd):
    """In words and by the exit code; it reports no order, so nothing is said about examples."""
    done = modelwright("train", run_file, "--verify-resume", *odd(1.0))
    assert done.returncode == 1
    assert done.stdout.startswith("tiny: 2 kills, 8 steps: different losses, different bytes; weights differ by ")
    assert done.stderr.endswith("error: tiny: the resumed training differs from the uninterrupted one\n")


@pytest.mark.long
@pytest.mark.parametrize(("forgotten", "code"), [(1e-4, 0), (1e-1, 1)])
def test_on_a_gpu_a_tolerance_is_promised(run_file, modelwright, odd, forgotten, code):
    """A trainer of another device than the CPU may differ a little, not much."""
    done = modelwright("train", run_file, "--verify-resume", "--json", *odd(forgotten, device="Some GPU"))
    assert done.returncode == code, done.stderr
    one = verified(done)
    assert (one["exact_promised"], one["same_bytes"], one["same_examples"]) == (False, False, None)
    assert one["relative_difference"] > 0
    assert (one["relative_difference"] <= 1e-3) == (code == 0)


@pytest.mark.long
def test_a_trainer_that_tells_of_no_steps_is_not_verified(run_file, modelwright, odd):
    """It cannot be killed where it should be, and nothing is claimed of it."""
    done = modelwright("train", run_file, "--verify-resume", "--json", *odd(0, kind="silent"))
    assert done.returncode == 1
    one = verified(done)
    assert (one["kills"], one["passed"]) == (0, False)


@pytest.mark.long
def test_a_training_that_fails_by_itself_says_why(run_file, modelwright, home):
    """As `train` would, and what it printed stays."""
    done = modelwright("train", run_file, "--verify-resume", "--set", "train.learning_rate=1e30")
    assert done.returncode == 1
    assert "lower learning_rate" in done.stderr
    assert (home / "runs" / "tiny" / "verify" / "through" / "logs" / "train.log").is_file()


@pytest.mark.long
def test_a_request_to_the_run_stops_its_verification(run_file, modelwright, home):
    """As it stops its training; the request is spent when the next one begins."""
    folder = home / "runs" / "tiny"
    command = [sys.executable, "-m", "modelwright.core", "train", run_file, "--verify-resume"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 120
    while not (folder / "verify" / "through" / "events").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    (folder / "stop").touch()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    assert said.endswith("tiny: stopped on request; the same command starts the check again\n")
    assert not (folder / "verify").exists()
    assert modelwright("train", run_file, "--verify-resume").returncode == 0


def test_what_was_not_prepared_or_says_two_things_is_refused(tmp_path, modelwright):
    """As `train` refuses it."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    done = modelwright("train", path, "--verify-resume")
    assert done.returncode == 2
    assert done.stderr == "error: tiny: train needs the stage prepare (not done yet): run that first\n"
    done = modelwright("train", path, "--verify-resume", "--fresh")
    assert done.returncode == 2
    assert done.stderr == "error: --verify-resume leaves the run's own training alone: leave out --fresh\n"
