"""A run's folder: its lock, stop request, stages' folders and the marks of what is done.

runs/NAME/
├── runner.lock         held by the runner
├── workers.lock        held by the runner and its workers
├── ranks.lock          shared by the workers that a launcher started between
├── stop                present if someone requested a stop
├── config.json         the resolved configuration, for the worker processes
├── events/             one file for each process that wrote
├── logs/               what worker processes printed
├── rendezvous/         how an external launcher's processes reach the first of them
├── done/STAGE.json     fingerprint, inputs and outputs of a finished stage
├── shards/2-of-4/      where a job works that prepares a share of the shards
├── verify/             two short trainings, while it is verified that this one resumes exactly
└── STAGE/              what the stage made
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, field, frozen

from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.api.files import why_no_folder

# Each of these signals asks a run to stop.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# How long the system may take to clear a killed runner away.
KILLED_ENDS_WITHIN = 1.0
# How long the workers of a killed runner may take to notice that it is gone.
ORPHANS_END_WITHIN = 60.0

_FOLDERS = ("done", "events", "logs", "rendezvous", "status")
_FILES = ("runner.lock", "workers.lock", "ranks.lock", "config.json", "stop")


@frozen(kw_only=True)
class Done:
    """The mark of a finished stage.

    Attributes:
        fingerprint: of the inputs.
        inputs: what the fingerprint was made of, to say what has changed.
        outputs: digests, addresses and figures that later stages read.
    """

    fingerprint: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


def _last_part(folder: RunFolder) -> str:
    return folder.path.name


@frozen
class RunFolder:
    """The folder of one run (of one variant), or where an evaluation without a run works.

    Attributes:
        path: the folder.
        name: the run's, for messages and events; by default the folder's.
    """

    path: Path
    name: str = field(default=Factory(_last_part, takes_self=True))

    @property
    def events(self) -> Path:
        """Where the events files are."""
        return self.path / "events"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    def stage(self, stage: str) -> Path:
        """What a stage makes is below this folder."""
        return self.path / stage

    @property
    def ranks_lock(self) -> Path:
        """The lock that every worker process shares."""
        return self.path / "ranks.lock"

    @property
    def rendezvous(self) -> Path:
        """Where the processes that an external launcher started find the first of them."""
        return self.path / "rendezvous"

    def log(self, stage: str) -> Path:
        """What the stage's worker process prints."""
        return self.path / "logs" / f"{stage}.log"

    def check(self, *stages: str) -> None:
        """Refuse a folder in which something else is where this class, or one of `stages`, keeps its own.

        Raises:
            ModelwrightError: what it is, and what to do.
        """
        places = {self.path: True}
        places |= {self.path / name: True for name in (*_FOLDERS, *stages)}
        places |= {self.path / name: False for name in _FILES}
        for place, is_folder in places.items():
            # What is written through a link that leads nowhere is a file where it leads; no folder is made so.
            there = os.path.lexists(place) if is_folder else place.exists()
            if there and not (place.is_dir() if is_folder else place.is_file()):
                kind = "folder" if is_folder else "file"
                raise ModelwrightError(f"{place} is not a {kind}: move it away; the run makes a {kind} there")

    def make(self) -> None:
        """Make the folder, where it is not there.

        Raises:
            ModelwrightError: it cannot be worked in.
        """
        self.check()
        if why := why_no_folder(self.path):
            raise ModelwrightError(f"{self.path} {why}")
        with files.failing_as(f"cannot create {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)

    # Done marks

    def _done(self, stage: str) -> Path:
        return self.path / "done" / f"{stage}.json"

    def done(self, stage: str) -> Done | None:
        """The mark of a finished stage, if it is there.

        Raises:
            DamagedError: it is not a mark; the stage counts as not done, and running it writes a new one.
        """
        keys = {"fingerprint": str, "inputs": dict, "outputs": dict}
        values = files.read_state(self._done(stage), keys, remedy=f"run {stage} again")
        return None if values is None else Done(**{key: values[key] for key in keys})

    def mark_done(self, stage: str, done: Done) -> None:
        """Mark a stage as finished; the last thing that a stage does."""
        files.write_json(
            self._done(stage),
            {"fingerprint": done.fingerprint, "inputs": dict(done.inputs), "outputs": dict(done.outputs)},
        )

    def unmark(self, stage: str) -> None:
        """Remove a stage's mark; the first thing that a stage does."""
        self._done(stage).unlink(missing_ok=True)

    def forget(self, stage: str) -> None:
        """Remove a stage's mark and all that it made."""
        self.unmark(stage)
        if self.stage(stage).exists():
            # Renamed first, so that a kill leaves all of it or nothing in place.
            aside = files.temporary_name(self.stage(stage), "old-")
            self.stage(stage).rename(aside)
            shutil.rmtree(aside)

    # Shards of the data, prepared by separate jobs

    def shard(self, number: int, of: int) -> RunFolder:
        """The folder of one of `of` jobs. They share only the events, so that stopping one does not stop the others."""
        return RunFolder(self.path / "shards" / f"{number}-of-{of}", self.name)

    def shards(self) -> int | None:
        """The number of jobs that last prepared the data together; None if there were none."""
        begun = {folder.stat().st_mtime_ns: folder for folder in (self.path / "shards").glob("*-of-*")}
        return int(begun[max(begun)].name.rpartition("-")[2]) if begun else None

    # Stop requests

    @property
    def _stop(self) -> Path:
        return self.path / "stop"

    def request_stop(self) -> None:
        """Ask the process that works here to stop at the end of the next step."""
        self._stop.touch()

    def stopping(self) -> bool:
        """Whether someone requested a stop."""
        return self._stop.exists()

    def clear_stop(self) -> None:
        """Take the request back; done by a run that begins."""
        self._stop.unlink(missing_ok=True)

    def stop_with(self, other: RunFolder) -> None:
        """Have one request for this folder and for `other`: who asks in either asks in both."""
        self._stop.symlink_to(other._stop)

    def check_stop(self) -> None:
        """Raise StopRequested if someone requested a stop."""
        if self.stopping():
            raise StopRequested(f"{self.name}: stopped on request; run the same command to resume")

    # Locks

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder's two locks; gives the descriptor of the second, which workers inherit and so hold too.

        They belong to the open file (flock), so the system frees them however a process ends. `runner.lock` is the
        runner's alone: who finds it held meets a living runner. `workers.lock` is freed when the last worker of a
        killed runner has noticed that its pipe closed: a new runner waits for that.

        Raises:
            ModelwrightError: a living runner works in the folder, workers outlive a killed one for too long, or it
                cannot be worked in.
        """
        self.make()
        with contextlib.ExitStack() as stack:
            runner = stack.enter_context(_opened(self.path / "runner.lock"))
            if not self._lock_within(runner, KILLED_ENDS_WITHIN):
                raise ModelwrightError(
                    f"{self.path} is in use by {os.pread(runner, 200, 0).decode() or 'another process'}: "
                    f"wait until it ends, or stop it with: touch {self._stop}"
                )
            os.ftruncate(runner, 0)
            os.pwrite(runner, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            workers = stack.enter_context(self._left_alone(self.path / "workers.lock"))
            with self._left_alone(self.ranks_lock):
                pass
            yield workers

    def has_ranks(self) -> bool:
        """Whether there are worker processes now, of this runner's or a killed one's."""
        with _opened(self.ranks_lock) as descriptor:
            return not self._lock_within(descriptor, 0.0)

    @contextlib.contextmanager
    def _left_alone(self, lock: Path) -> Iterator[int]:
        """Hold a lock that the workers of a killed runner may hold still."""
        with _opened(lock) as descriptor:
            if not self._lock_within(descriptor, ORPHANS_END_WITHIN):
                raise ModelwrightError(
                    f"{self.path}: worker processes of a killed run still work here after {ORPHANS_END_WITHIN:.0f} s: "
                    f"end them (fuser {lock} lists them)"
                )
            yield descriptor

    def _lock_within(self, descriptor: int, seconds: float) -> bool:
        give_up = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    return False
                time.sleep(0.05)
            except OSError as error:
                raise ModelwrightError(
                    f"{self.path}: this file system does not support locks ({error.strerror}): "
                    "set MODELWRIGHT_HOME to a folder on another file system"
                ) from error
            else:
                return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    with files.failing_as(f"cannot open {path}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
