"""The sweep of the rest of the chain: little data, and folders and disks that are not as they should be.

Each case is one line and an exit code, and the same command succeeds once what was in the way is gone.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time

import pytest

from modelwright.core.runs.events import read_events

RUN = """
name = "sweep"
seed = 1
[model.scratch]
hidden_size = 16
layers = 1
heads = 2
vocab_size = 300
[data]
format = "general"
[[data.sources]]
path = "rows.jsonl"
[data.tokens]
max_length = 64
[train]
max_steps = 2
"""
ROWS = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(3)]


@pytest.fixture
def run_file(tmp_path, rows_file):
    """Writes a run.toml and its rows."""

    def write(rows=ROWS, more=""):
        rows_file(tmp_path / "rows.jsonl", rows)
        (tmp_path / "run.toml").write_text(RUN + more)
        return tmp_path / "run.toml"

    return write


def _refused(done, code=1):
    """The one line of an error."""
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("sweep ", "    "))]
    assert len(errors) == 1, done.stderr
    return errors[0]


def _report(home, stage="prepare"):
    return json.loads((home / "runs" / "sweep" / "done" / f"{stage}.json").read_text())["outputs"]


# Little data


def test_one_row_is_enough_to_train_register_and_evaluate(run_file, modelwright, home):
    """A batch takes it as often as it needs."""
    suite = (
        '[[evaluate]]\nname = "one"\npath = "rows.jsonl"\nmetrics = ["exact_match"]\ngeneration = { max_tokens = 4 }\n'
    )
    done = modelwright("run", run_file(ROWS[:1], suite))
    assert done.returncode == 0, done.stderr
    assert _report(home)["rows"] == 1
    assert _report(home, "train")["training"]["steps"] == 2
    assert _report(home, "evaluate")["metrics"]["one"]["exact_match"]["n"] == 1


def test_fewer_rows_than_the_usual_batch_are_a_step(run_file, modelwright, home):
    """Two epochs of three rows are two steps: who names no size wants what there is."""
    path = run_file()
    path.write_text(path.read_text().replace("max_steps = 2", "epochs = 2"))
    assert modelwright("prepare", path).returncode == 0
    done = modelwright("train", path)
    assert done.returncode == 0, done.stderr
    assert _report(home, "train")["training"]["steps"] == 2


@pytest.mark.parametrize("size", [4, 10**12])
@pytest.mark.parametrize("length", ["max_steps", "epochs"])
def test_a_batch_larger_than_the_data_is_refused_before_the_first_step(
    wording, run_file, modelwright, home, size, length
):
    """Both numbers are said; nothing of it is begun, and a size that fits goes on from what is prepared."""
    path = run_file()
    path.write_text(path.read_text().replace("max_steps = 2", f"{length} = 2"))
    refused = _refused(modelwright("run", path, "--set", f"train.batch_size={size}"), code=2)
    wording(refused)
    assert not (home / "runs" / "sweep" / "train").exists()
    assert modelwright("run", path, "--set", "train.batch_size=3").returncode == 0
    if length == "max_steps":
        one = run_file(ROWS[:1])
        refused = _refused(modelwright("run", one, "--set", f"train.batch_size={size}"), code=2)
        wording(refused)


def test_a_stop_request_does_not_wait_for_the_end_of_a_long_step(wording, run_file, home, tmp_path, modelwright):
    """The run leaves with the last whole step, here none, and the same command goes on."""
    path = run_file([{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(1000)])
    long = {"train.batch_size": 1000, "train.micro_batch_size": 1, "model.scratch.hidden_size": 256}
    more = [part for key, value in long.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "modelwright.core", "run", str(path), *more]
    events = home / "runs" / "sweep" / "events"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
        give_up = time.monotonic() + 60
        while not any(event.kind == "started" for event in read_events(events, stage="train")):
            assert run.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        run.terminate()
        _, said = run.communicate(timeout=30)
    assert run.returncode == 75
    wording(said.splitlines()[-1])
    done = modelwright("run", path)
    assert done.returncode == 0, done.stderr


def test_rows_that_are_all_too_long_stop_before_training_and_a_longer_limit_goes_on(
    wording, run_file, modelwright, home
):
    """With what to change."""
    path = run_file()
    refused = _refused(modelwright("run", path, "--set", "data.tokens.max_length=4"))
    wording(refused)
    assert modelwright("run", path).returncode == 0


# Places that are not what they should be


def test_a_file_in_the_way_of_the_home_or_the_run_is_named(wording, run_file, modelwright, home):
    """Nothing of it is touched."""
    path = run_file()
    home.write_text("mine")
    refused = _refused(modelwright("prepare", path))
    wording(refused, home=home)
    assert home.read_text() == "mine"
    home.unlink()
    (home / "runs").mkdir(parents=True)
    (home / "runs" / "sweep").write_text("mine")
    refused = _refused(modelwright("prepare", path))
    wording(refused, home=home)
    assert (home / "runs" / "sweep").read_text() == "mine"
    (home / "runs" / "sweep").unlink()
    assert modelwright("prepare", path).returncode == 0


def test_a_run_file_that_is_gone_is_named_and_its_run_goes_on_once_it_is_back(wording, run_file, modelwright, home):
    """The run's folder does not depend on where the file is."""
    path = run_file()
    assert modelwright("prepare", path).returncode == 0
    text = path.read_text()
    path.unlink()
    wording(_refused(modelwright("train", path), code=2))
    path.mkdir()
    wording(_refused(modelwright("train", path), code=2))
    path.rmdir()
    path.write_text(text)
    done = modelwright("train", path)
    assert done.returncode == 0, done.stderr


def test_two_runs_at_once_in_one_folder_are_one_and_a_line(run_file, modelwright, home, tmp_path, wording):
    """The second says who is there; the first is not disturbed."""
    path = run_file()
    command = [sys.executable, "-m", "modelwright.core", "run", str(path), "--set", "train.max_steps=100000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as first:
        give_up = time.monotonic() + 60
        while not (home / "runs" / "sweep" / "done" / "prepare.json").exists():
            assert first.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.05)
        refused = _refused(modelwright("run", path))
        first.terminate()
        first.communicate(timeout=60)
    assert first.returncode == 75
    wording(refused, pid=first.pid, host=socket.gethostname())


def test_a_read_only_home_is_one_line(wording, run_file, modelwright, tmp_path, monkeypatch, mounted):
    """And once it may be written, the command does its work."""
    path = run_file()
    disk = mounted(tmp_path / "disk", "-o", "ro")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(disk / "home"))
    refused = _refused(modelwright("prepare", path))
    wording(refused)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert modelwright("prepare", path).returncode == 0


# Disks that are full


def test_a_disk_that_is_full_while_preparing_is_one_line(
    wording, run_file, modelwright, tmp_path, monkeypatch, mounted
):
    """Nothing half done stays; with room, the same command succeeds."""
    path = run_file([{"prompt": f"say {n} " + "x" * 300, "completion": str(n)} for n in range(4000)])
    more = ("--set", "data.tokens.max_length=2000", "--set", 'model.scratch.tokenizer="bpe"')
    disk = mounted(tmp_path / "disk", "-o", "size=1m")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(disk))
    refused = _refused(modelwright("prepare", path, *more))
    folder = disk / "runs" / "sweep"
    wording(refused)
    assert not (folder / "prepare").exists()
    assert not list((disk / "cache").glob("*/.tmp-*"))
    assert not list(folder.glob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    done = modelwright("prepare", path, *more)
    assert done.returncode == 0, done.stderr


def test_a_disk_that_would_be_full_is_reported_before_the_first_step(
    run_file, modelwright, tmp_path, monkeypatch, mounted
):
    """How much there must be, and how much there is."""
    disk = mounted(tmp_path / "disk", "-o", "size=700k")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(disk))
    refused = _refused(modelwright("run", run_file(), "--set", "model.scratch.hidden_size=96"))
    assert re.fullmatch(
        rf"error: {disk}: not enough disk space for checkpoints: 2 kept and one being written take [\d.]+ MB, "
        r"and 0.\d MB are free: free some, lower keep_checkpoints in \[train\], or set MODELWRIGHT_HOME to a folder on "
        r"another disk",
        refused,
    )


@pytest.mark.parametrize("size", [700, 2600])
def test_a_disk_that_is_full_while_training_is_one_line(
    wording, run_file, modelwright, tmp_path, monkeypatch, mounted, size
):
    """At any file that meets it; with room, the same command goes on and registers the model."""
    path = run_file()
    more = ("--set", "model.scratch.hidden_size=96", "--set", "train.checkpoint_every=1")
    # The preflight would see it coming.
    more = (*more, "--set", "train.preflight=false")
    disk = mounted(tmp_path / "disk", "-o", f"size={size}k")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(disk))
    refused = _refused(modelwright("run", path, *more))
    wording(refused)
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    done = modelwright("run", path, *more)
    assert done.returncode == 0, done.stderr
    assert "sweep@1" in done.stdout
