"""Worker processes: the runner's side starts and follows one, the worker's side does its stage and leaves a status.

The status file carries the result, not the exit code: a launcher between the two may lose it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.config import from_plain
from modelwright.core.config.schema import RunConfig
from modelwright.core.events import WORKER, EventTail, EventWriter
from modelwright.core.plugins import Plugins, discover
from modelwright.core.stage import Listener
from modelwright.core.workspace import RunFolder

POLL_SECONDS = 0.1
# How soon a process of several ends once another one has failed.
TOGETHER_SECONDS = 0.3
# Waiting threads sleep instead of spinning: beside other work on the same cores that is many times faster.
_SHARING_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

Config = TypeVar("Config")


class WorkerDiedError(ModelwrightError):
    """A worker process ended without a result: it crashed, or the system killed it."""


class Following(Protocol):
    """Who starts a worker: a run, or an evaluation without one."""

    @property
    def folder(self) -> RunFolder:
        """Where the worker works."""
        ...

    @property
    def writing(self) -> int:
        """The descriptor of the workers' lock, which the worker inherits."""
        ...

    @property
    def listener(self) -> Listener | None:
        """Hears the worker's events."""
        ...


@contextlib.contextmanager
def stop_on_signals(folder: RunFolder) -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP into a stop request; a second Ctrl-C ends the program at once.

    A signal that is ignored, as SIGHUP is below nohup, stays so.
    """
    interrupted = False

    def handle(number: int, _frame: Any) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            raise KeyboardInterrupt
        interrupted = interrupted or number == signal.SIGINT
        first = not folder.stopping()
        folder.request_stop()
        if first:
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                os.write(2, f"\n{signal.Signals(number).name}: stopping at the next safe point{again}\n".encode())

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def worker_command(module: str, folder: RunFolder) -> list[str]:
    """The command line of a worker; `-P` keeps the working directory, with whatever modules lie in it, off its path."""
    return [sys.executable, "-P", "-m", module, str(folder.path), folder.name]


def _status(folder: RunFolder, stage: str) -> Path:
    return folder.path / "status" / f"{stage}.json"


def _failure(folder: RunFolder, stage: str) -> Path:
    """Who makes this file is the first to fail of several processes."""
    return folder.path / "status" / f"{stage}.failed"


def clear_outcome(folder: RunFolder, stage: str) -> None:
    """Remove what an earlier worker left, before a new one is started."""
    _status(folder, stage).unlink(missing_ok=True)
    _failure(folder, stage).unlink(missing_ok=True)


def start_worker(
    command: Sequence[str], environment: Mapping[str, str | None], output: IO[bytes], inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a worker in a process group of its own; its standard input is a pipe from this process.

    Args:
        command: the program and its arguments.
        environment: variables beside this process's own; None takes one away.
        output: where it prints.
        inherited: the descriptors that it inherits.
    """
    variables: dict[str, str | None] = {**_SHARING_CORES, **os.environ, **environment}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherited,
        env={name: value for name, value in variables.items() if value is not None},
    )


def run_worker(
    run: Following, stage: str, command: Sequence[str], environment: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """Start a stage's worker, pass its events to the run's listener, and return the outputs that it left.

    The worker has a process group of its own, so a Ctrl-C at the terminal reaches the runner alone. Its standard input
    is a pipe that closes when the runner ends, however it ends; then the worker ends too.

    Raises:
        StopRequested: it stopped on request, resumable.
        WorkerDiedError: it died without leaving a status.
        ModelwrightError: it failed.
    """
    folder = run.folder
    status, log = _status(folder, stage), folder.log(stage)
    clear_outcome(folder, stage)
    log.parent.mkdir(parents=True, exist_ok=True)
    tail = EventTail(folder.events, from_now=True)
    with log.open("ab") as output:
        begin = output.tell()
        process = start_worker(command, environment or {}, output, (run.writing,))
        try:
            while process.poll() is None:
                _pass_on(run, tail)
                time.sleep(POLL_SECONDS)
        except BaseException:
            # A second Ctrl-C, or the listener failed: nobody follows the worker any more.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()
    _pass_on(run, tail)
    written = files.read_json(status)
    if written is None:
        # A signal to every process of the run can reach a worker before it listens.
        folder.check_stop()
    return _outcome(written, stage, process.returncode, log, begin)


def _pass_on(run: Following, tail: EventTail) -> None:
    for event in tail.poll():
        if run.listener and event.role == WORKER:
            run.listener(event)


def ended_how(code: int) -> str:
    """How a process ended, by its return code."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _outcome(status: Mapping[str, Any] | None, stage: str, code: int, log: Path, begin: int) -> dict[str, Any]:
    if status is None:
        end = ended_how(code)
        with log.open("rb") as file:
            file.seek(begin)
            last = file.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        said = f"; its last line: {last[-1]}" if last else ""
        raise WorkerDiedError(f"the {stage} worker died ({end}) without a result{said}; all that it printed: {log}")
    if status["state"] == "stopped":
        raise StopRequested(status["error"])
    if status["state"] == "failed":
        raise ModelwrightError(f"{status['error']} (more in {log})" if status["unexpected"] else status["error"])
    outputs: dict[str, Any] = status["outputs"]
    return outputs


@frozen(kw_only=True)
class Worker(Generic[Config]):
    """What a worker process works with.

    Attributes:
        folder: the run's folder.
        config: the resolved configuration, of the kind that the worker's stage reads.
        plugins: the plugins that it admits.
        place: which of several processes it is.
        events: the worker's own events; None where another process tells them.
    """

    folder: RunFolder
    config: Config
    plugins: Plugins
    place: Place
    events: EventWriter | None = None

    def emit(self, kind: str, data: Mapping[str, Any]) -> None:
        """Write an event; of several processes the first one does."""
        if self.events is not None:
            self.events.emit(kind, data)


# Finds the configuration of a stage in the run's folder, and the plugins that it admits.
Reader = Callable[[RunFolder], tuple[Config, Plugins]]


def read_run_config(folder: RunFolder) -> tuple[RunConfig, Plugins]:
    """The configuration of a run, as its runner left it."""
    values = files.read_json(folder.config)
    plugins = admitted(values)
    return from_plain(values, plugins), plugins


def admitted(values: Mapping[str, Any]) -> Plugins:
    """The plugins that a plain configuration's `[plugins]` admits."""
    table = values.get("plugins", {})
    return discover(disable=table.get("disable", ()), prefer=table.get("prefer"))


@frozen
class Place:
    """Which of the processes of a stage this one is.

    Attributes:
        rank: its number; the first one, 0, writes events and status.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1


def work(
    stage: str, body: Callable[[Worker[Config]], dict[str, Any]], read: Reader[Config], place: Place | None = None
) -> None:
    """A worker process from beginning to end: `read` the configuration, do `body`, leave the status.

    Its arguments are the run's folder and name. Of several processes the first one leaves the status; or the first that
    fails, and then the others end at once, instead of waiting for it until their network library gives up.
    """
    folder, place = RunFolder(Path(sys.argv[1]), sys.argv[2]), place or Place()
    _hold(folder)
    _end_with_the_runner()
    if place.size > 1:
        _end_together(folder, stage)
    else:
        for number in STOP_SIGNALS:
            signal.signal(number, lambda _number, _frame: folder.request_stop())
    status: dict[str, Any]
    try:
        outputs = _in_worker(folder, stage, body, read, place)
        status = {"state": "done", "outputs": outputs}
        if place.rank == 0:
            files.write_json(_status(folder, stage), status)
    except StopRequested as error:
        status = {"state": "stopped", "error": str(error)}
    except ModelwrightError as error:
        status = {"state": "failed", "error": str(error), "unexpected": False}
    except Exception as error:  # noqa: BLE001 - whatever it was, the runner must hear of it
        traceback.print_exc()
        status = {"state": "failed", "error": f"{stage}: {type(error).__name__}: {error}", "unexpected": True}
    if status["state"] == "stopped" and place.rank == 0:
        files.write_json(_status(folder, stage), status)
    if status["state"] == "failed":
        leave_failure(folder, stage, status, place)
    sys.stdout.flush()
    sys.stderr.flush()
    # The launcher of several takes any other code for a failure, and says so at length.
    stopped = 75 if place.size == 1 else 0
    os._exit(0 if status["state"] == "done" else stopped if status["state"] == "stopped" else 1)


def leave_failure(folder: RunFolder, stage: str, status: Mapping[str, Any], place: Place | None = None) -> None:
    """Leave the status of a process that failed, unless another one failed before; the others then end soon."""
    _failure(folder, stage).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(_failure(folder, stage), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return  # another process failed before, and tells why
    told = dict(status)
    if place and place.size > 1:
        told["error"] = f"{status['error']} (process {place.rank} of {place.size})"
    files.write_json(_status(folder, stage), told)


def _hold(folder: RunFolder) -> None:
    """Share a lock until this process ends, which a new runner waits for: launchers hand no descriptors on."""
    descriptor = os.open(folder.ranks_lock, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _end_together(folder: RunFolder, stage: str) -> None:
    """End this process soon after another one has failed."""
    failure, status = _failure(folder, stage), _status(folder, stage)

    def watch() -> None:
        while not (failure.exists() and status.exists()):
            time.sleep(TOGETHER_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="failure-watch", daemon=True).start()


def _in_worker(
    folder: RunFolder,
    stage: str,
    body: Callable[[Worker[Config]], dict[str, Any]],
    read: Reader[Config],
    place: Place,
) -> dict[str, Any]:
    config, plugins = read(folder)
    if place.rank:
        return body(Worker(folder=folder, config=config, plugins=plugins, place=place))
    events = EventWriter(folder.events, run=folder.name, stage=stage, role=WORKER)
    try:
        return body(Worker(folder=folder, config=config, plugins=plugins, place=place, events=events))
    finally:
        events.close()


def _end_with_the_runner() -> None:
    """End this process, and its group, when standard input closes: the runner is gone and nobody else may write."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, name="runner-watch", daemon=True).start()
