"""The runner's side of a worker process: it starts one, follows its events, and reads what it left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.runs.events import WORKER, EventTail
from modelwright.core.runs.folder import STOP_SIGNALS, RunFolder
from modelwright.core.runs.stage import Listener
from modelwright.core.runs.status import Status

POLL_SECONDS = 0.1
# Seconds that processes may take to reach a checkpoint after a signal ended their launcher.
WITHOUT_LAUNCHER_SECONDS = 60.0
# Waiting threads sleep instead of spinning: beside other work on the same cores that is many times faster.
_SHARING_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}

# The beginning of the report about a process that a signal ended.
KILLED = "a process was killed by"


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
            again = "; press Ctrl-C again to end it immediately" if number == signal.SIGINT else ""
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
    """The command line of a worker; `-P` keeps the modules of the working directory off its path."""
    return [sys.executable, "-P", "-m", module, str(folder.path), folder.name]


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
    run: Following,
    stage: str,
    command: Sequence[str],
    environment: Mapping[str, str | None] | None = None,
    *,
    before: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Start a stage's worker, pass its events to the run's listener, and return the outputs that it left.

    The worker has a process group of its own, so a Ctrl-C at the terminal reaches the runner alone. Its standard input
    is a pipe that closes when the runner ends, however it ends; then the worker ends too.

    Args:
        run: whose worker it is.
        stage: the stage's name.
        command: the program and its arguments.
        environment: variables beside this process's own; None takes one away.
        before: done as soon as nothing of an earlier worker is left that a new one could take for its own.

    Raises:
        StopRequested: it stopped on request, resumable.
        WorkerDiedError: it died without leaving a status.
        ModelwrightError: it failed.
    """
    folder = run.folder
    status, log = Status(folder, stage), folder.log(stage)
    status.clear()
    log.parent.mkdir(parents=True, exist_ok=True)
    if before:
        before()
    tail = EventTail(folder.events, from_now=True)
    with log.open("ab") as output:
        begin = output.tell()
        process = start_worker(command, environment or {}, output, (run.writing,))
        try:
            while process.poll() is None:
                _pass_on(run, tail)
                time.sleep(POLL_SECONDS)
            if -process.returncode in STOP_SIGNALS:
                _without_launcher(run, status, tail)
        except BaseException:
            # A second Ctrl-C, or the listener failed: nobody follows the worker any more.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            assert process.stdin is not None
            process.stdin.close()
    _pass_on(run, tail)
    written = status.read()
    if written is None:
        # A signal to every process of the run can reach a worker before it listens.
        folder.check_stop()
    return _outcome(written, stage, process.returncode, log, begin)


def _without_launcher(run: Following, status: Status, tail: EventTail) -> None:
    """Let processes come to an end by themselves whose launcher did not survive the signal that reached it."""
    give_up = time.monotonic() + WITHOUT_LAUNCHER_SECONDS
    while status.read() is None and run.folder.has_ranks() and time.monotonic() < give_up:
        _pass_on(run, tail)
        time.sleep(POLL_SECONDS)


def _pass_on(run: Following, tail: EventTail) -> None:
    for event in tail.poll():
        if run.listener and event.role == WORKER:
            run.listener(event)


def killed_by(code: int) -> str | None:
    """The signal that ended a process, or one that it waited for, by its return code; None if none did.

    Python reports a signal as minus its number; a launcher that exits with such a code gives it modulo 256, and a shell
    adds 128. The kernel ends processes by SIGKILL if memory runs out.
    """
    number = -code if code < 0 else 256 - code if code > 256 - signal.NSIG else code - 128
    if number not in set(signal.Signals):
        return None
    name = signal.Signals(number).name
    return f"{name}, probably out of memory" if number == signal.SIGKILL else name


def ended_how(code: int) -> str:
    """How a process ended, by its return code."""
    killed = killed_by(code)
    return f"signal {killed}" if killed else f"exit code {code}"


def _outcome(status: Mapping[str, Any] | None, stage: str, code: int, log: Path, begin: int) -> dict[str, Any]:
    end = ended_how(code)
    # Beside a process that was killed, the others can report only that it is gone.
    if status is None or (status["state"] == "failed" and signal.SIGKILL.name in end):
        with log.open("rb") as file:
            file.seek(begin)
            last = file.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        # A process that is killed says nothing; the last line is then its launcher's.
        said = f"; its last line: {last[-1]}" if last and signal.SIGKILL.name not in end else ""
        raise WorkerDiedError(f"the worker process of {stage} died ({end}) without a result{said}; its log: {log}")
    if status["state"] == "stopped":
        raise StopRequested(status["error"])
    if status["state"] == "failed":
        raise ModelwrightError(f"{status['error']} (see {log})" if status["unexpected"] else status["error"])
    outputs: dict[str, Any] = status["outputs"]
    return outputs
