"""A worker process from beginning to end: it does a stage of a run, together with others or alone, and leaves a status.

What outlives a run is a danger to the next: a worker ends when its runner does, and of several each ends when another
one has failed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.config import from_plain
from modelwright.core.config.schema import RunConfig
from modelwright.core.plugins import Plugins, discover
from modelwright.core.runs.events import WORKER, EventWriter
from modelwright.core.runs.folder import STOP_SIGNALS, RunFolder
from modelwright.core.runs.status import Failure, Status

# How soon a process of several ends once another one has failed.
TOGETHER_SECONDS = 0.3
# Seconds that one of several processes may take to reach a safe point after a signal; launchers allow thirty.
REACHES_A_STOP_WITHIN = 15.0
# The file system gives no more: the next attempt goes on, once it does.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Config = TypeVar("Config")


@frozen
class Place:
    """Which of the processes of a stage this one is.

    Attributes:
        rank: its number; the first one, 0, writes events and status.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1


@frozen(kw_only=True)
class Worker(Generic[Config]):
    """What a worker process works with.

    Attributes:
        folder: the run's folder.
        config: the resolved configuration, of the kind that the worker's stage reads.
        plugins: the plugins that it admits.
        place: which of several processes it is.
        stopping: whether it is asked to stop at the next safe point.
        events: the worker's own events; None where another process tells them.
    """

    folder: RunFolder
    config: Config
    plugins: Plugins
    place: Place
    stopping: Callable[[], bool]
    events: EventWriter | None = None

    def emit(self, kind: str, data: Mapping[str, Any]) -> None:
        """Write an event; of several processes the first one does."""
        if self.events is not None:
            self.events.emit(kind, data)


# Finds the configuration of a stage in the run's folder, and the plugins that it admits.
Reader = Callable[[RunFolder], tuple[Config, Plugins]]
# What a stage's worker does.
Body = Callable[[Worker[Config]], dict[str, Any]]


def read_run_config(folder: RunFolder) -> tuple[RunConfig, Plugins]:
    """The configuration of a run, as its runner left it."""
    values = files.read_json(folder.config)
    plugins = admitted(values)
    return from_plain(values, plugins), plugins


def admitted(values: Mapping[str, Any]) -> Plugins:
    """The plugins that a plain configuration's `[plugins]` admits."""
    table = values.get("plugins", {})
    return discover(disable=table.get("disable", ()), prefer=table.get("prefer"))


def work(stage: str, body: Body[Config], read: Reader[Config], place: Place | None = None) -> None:
    """A worker process from beginning to end: `read` the configuration, do `body`, leave the status.

    Its arguments are the run's folder and name. Of several processes the first one leaves the status; or the first that
    fails, and then the others end at once, instead of waiting for it until their network library gives up.
    """
    folder, place = RunFolder(Path(sys.argv[1]), sys.argv[2]), place or Place()
    _hold(folder)
    _end_with_the_runner()
    status = Status(folder, stage)
    with status.room_for_failure() as failure:
        stopping = _alone(folder) if place.size == 1 else _together(folder, status, failure, place)
        code = _do(status, failure, place, lambda: _in_worker(folder, stage, body, read, place, stopping))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _do(status: Status, failure: Failure, place: Place, body: Callable[[], dict[str, Any]]) -> int:
    """Do the stage and leave what came of it; gives the exit code."""
    unexpected = False
    try:
        outputs = body()
        if place.rank == 0:
            status.done(outputs)
    except StopRequested as error:
        if place.rank == 0:
            status.stopped(str(error))
        # The launcher of several takes any other code for a failure, and says so at length.
        return 75 if place.size == 1 else 0
    except ModelwrightError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - the runner must hear of every error
        traceback.print_exc()
        no_room = isinstance(error, OSError) and error.errno in _NO_ROOM
        unexpected = not no_room
        reason = _no_room(error) if no_room else f"{status.stage}: {type(error).__name__}: {error}"
    else:
        return 0
    failure.tell(f"{reason}{_which(place)}", unexpected=unexpected)
    return 1


def _no_room(error: Any) -> str:
    return (
        f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space, then run the same command to "
        "resume"
    )


def _which(place: Place) -> str:
    return f" (process {place.rank} of {place.size})" if place.size > 1 else ""


def _in_worker(
    folder: RunFolder,
    stage: str,
    body: Body[Config],
    read: Reader[Config],
    place: Place,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    config, plugins = read(folder)
    with _events(folder, stage, place) as events:
        worker = Worker(folder=folder, config=config, plugins=plugins, place=place, stopping=stopping, events=events)
        return body(worker)


@contextlib.contextmanager
def _events(folder: RunFolder, stage: str, place: Place) -> Iterator[EventWriter | None]:
    if place.rank:
        yield None
        return
    with contextlib.closing(EventWriter(folder.events, run=folder.name, stage=stage, role=WORKER)) as events:
        yield events


def _hold(folder: RunFolder) -> None:
    """Share a lock until this process ends, which a new runner waits for: launchers hand no descriptors on."""
    descriptor = os.open(folder.ranks_lock, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _end_with_the_runner() -> None:
    """End this process, and its group, when standard input closes: the runner is gone and nobody else may write."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, name="runner-watch", daemon=True).start()


def _alone(folder: RunFolder) -> Callable[[], bool]:
    """Take a signal for a stop request."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: folder.request_stop())
    return folder.stopping


def _together(folder: RunFolder, status: Status, failure: Failure, place: Place) -> Callable[[], bool]:
    """End soon after another process has failed; take a signal for a stop request if this one comes to where it can.

    When one process was killed, a launcher ends the others by the same signal. This one then waits for the dead one,
    and must not report that it was stopped on request. So the signal writes no request, and a process that does not ask
    soon whether it should stop has failed.
    """
    stop_requested, heard = threading.Event(), threading.Event()

    def watch() -> None:
        while not status.has_failed():
            time.sleep(TOGETHER_SECONDS)
        os._exit(1)

    def give_up() -> None:
        if not heard.wait(REACHES_A_STOP_WITHIN):
            failure.tell(
                f"{status.stage}: ended by a signal before a checkpoint, or another of its processes was killed "
                f"(perhaps out of memory: see dmesg); run the same command to resume{_which(place)}"
            )
            os._exit(1)

    def stopping() -> bool:
        if stop_requested.is_set():
            heard.set()
        return stop_requested.is_set() or folder.stopping()

    def ask(_number: int, _frame: Any) -> None:
        if not stop_requested.is_set():
            stop_requested.set()
            threading.Thread(target=give_up, name="stop-watch", daemon=True).start()

    threading.Thread(target=watch, name="failure-watch", daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, ask)
    return stopping
