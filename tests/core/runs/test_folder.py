"""A run's folder: one runner at a time, and never beside the workers of a killed one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.runs import folder as workspace
from modelwright.core.runs.folder import Done, RunFolder

HOLD = """
import subprocess, sys, time
from pathlib import Path
from modelwright.core.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked() as lock:
    worker = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[lock])
    print(worker.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def runner(tmp_path):
    """A real runner with a real worker, in processes of their own."""
    started = []

    def start(worker_seconds: float) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), str(worker_seconds)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_runner_learns_who_holds_the_folder(tmp_path, runner):
    """At once, not after a time-out."""
    holder = runner(60)
    begin = time.monotonic()
    with pytest.raises(ModelwrightError, match=f"in use by process {holder.pid} on "), RunFolder(tmp_path).locked():
        pass
    assert time.monotonic() - begin < 5


def test_the_workers_of_a_killed_runner_are_waited_for(tmp_path, runner):
    """A new runner begins when the last worker has gone, not before."""
    holder = runner(1.5)
    begin = time.monotonic()
    holder.send_signal(signal.SIGKILL)
    with RunFolder(tmp_path).locked():
        assert 1.0 < time.monotonic() - begin < 20


def test_workers_that_never_end_are_named(tmp_path, runner, monkeypatch):
    """Nobody waits for ever."""
    monkeypatch.setattr(workspace, "ORPHANS_END_WITHIN", 0.3)
    runner(5).kill()
    with (
        pytest.raises(ModelwrightError, match=r"processes of a killed run .*/workers\.lock lists"),
        RunFolder(tmp_path).locked(),
    ):
        pass


def test_a_stop_request_is_a_file(tmp_path):
    """Anybody can write it: a signal's handler, a batch system, a person."""
    folder = RunFolder(tmp_path)
    folder.check_stop()
    (tmp_path / "stop").touch()
    with pytest.raises(StopRequested, match="run the same command to resume"):
        folder.check_stop()
    folder.clear_stop()
    folder.check_stop()


def test_two_folders_can_have_one_stop_request(tmp_path):
    """The folder of a verification stops with the run's; it can be worked in whether one was asked for or not."""
    run, aside = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run" / "aside")
    for folder in (run, aside):
        folder.make()
    aside.stop_with(run)
    for stopped, other in ((run, aside), (aside, run)):
        with aside.locked():
            assert not aside.stopping()
            stopped.request_stop()
            assert other.stopping()
        with aside.locked():
            assert aside.stopping()
        run.clear_stop()


def test_a_mark_holds_what_later_stages_read(tmp_path):
    """And is gone when its stage begins again."""
    folder = RunFolder(tmp_path)
    assert folder.done("train") is None
    folder.mark_done("train", Done(fingerprint="f", inputs={"a": 1}, outputs={"digest": "d"}))
    assert folder.done("train") == Done(fingerprint="f", inputs={"a": 1}, outputs={"digest": "d"})
    folder.unmark("train")
    assert folder.done("train") is None
