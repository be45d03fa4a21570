"""Run a job on many items, in this process or in worker processes; results come in the order of the items.

Not `concurrent.futures.ProcessPoolExecutor`: its workers never notice that the runner was killed, and would keep the
lock of the cache forever; it hides the signal by which a worker died; and its spawn imports the caller's `__main__`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any, Protocol, Self, TypeVar

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.plugins import Plugins

POLL_SECONDS = 0.2
# Items per process that may be ahead of the first unfinished one.
AHEAD = 4
# One thread per process, because the processes share the cores.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
Tick = Callable[[], None]


class Job(Protocol[Item_contra, Result_co]):
    """The work on each item; it is pickled to be sent to worker processes."""

    def opened(
        self, plugins: Plugins | None
    ) -> contextlib.AbstractContextManager[Callable[[Item_contra, Tick], Result_co]]:
        """Load what the job needs, and return the function that processes an item.

        Its arguments are the item and a function to call from time to time, which may raise to stop the work.

        Args:
            plugins: the plugins of the run; None in a worker process, which has to discover them.
        """
        ...


def available_processes() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@frozen
class _Begin:
    """The message that gives a worker its next job."""

    job: Any


class Pool:
    """Runs jobs one after the other, in this process or in several; use it as a context manager.

    The processes start with the first job that needs them.

    Args:
        processes: the maximum number.
        plugins: for jobs that run in this process.
        inherited: a descriptor, such as that of a lock, that workers keep open: they may outlive a killed runner.
    """

    def __init__(self, processes: int, plugins: Plugins, *, inherited: int) -> None:
        self._count = processes
        self._inherited = inherited
        self._plugins = plugins
        self._processes: dict[connection.Connection, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for ours, process in self._processes.items():
            ours.close()
            process.kill()  # results are published whole or not at all
            process.wait()

    def ordered(self, job: Job[Item, Result], items: Iterable[Item], tick: Tick) -> Iterator[Result]:
        """The results of `job` on each item, in order. A single item is processed here.

        Args:
            job: the work.
            items: consumed as needed.
            tick: called often; may raise to stop.

        Raises:
            ModelwrightError: the job failed, or a process died.
        """
        remaining = iter(items)
        first = list(itertools.islice(remaining, 2))
        everything = itertools.chain(first, remaining)
        if self._count == 1 or len(first) < 2:
            with job.opened(self._plugins) as do:
                for item in everything:
                    tick()
                    yield do(item, tick)
            return
        if not self._processes:
            self._start()
        for ours in self._processes:
            self._send(ours, _Begin(job))
        yield from self._map(everything, tick)

    def _start(self) -> None:
        command = [sys.executable, "-P", "-c", f"import {__name__} as pool; pool.main()"]
        for _ in range(self._count):
            ours, theirs = connection.Pipe()
            with theirs:
                self._processes[ours] = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what a plugin prints is not the output of this command
                    pass_fds=(theirs.fileno(), self._inherited),
                    start_new_session=True,  # Ctrl-C at the terminal goes to the runner only, which ends them
                    env=os.environ | _ONE_THREAD,
                )

    def _map(self, items: Iterator[Any], tick: Tick) -> Iterator[Any]:
        """The results in the items' order."""
        idle, busy = list(self._processes), dict[connection.Connection, int]()
        done: dict[int, Any] = {}
        numbered = enumerate(items)
        following = next(numbered, None)
        wanted = 0
        while following or busy or done:
            while idle and following and following[0] < wanted + AHEAD * len(self._processes):
                worker = idle.pop()
                busy[worker] = following[0]
                self._send(worker, following[1])
                following = next(numbered, None)
            while wanted in done:
                yield done.pop(wanted)
                wanted += 1
            tick()
            for ready in connection.wait(list(busy), POLL_SECONDS):
                assert isinstance(ready, connection.Connection)
                done[busy.pop(ready)] = self._receive(ready)
                idle.append(ready)

    def _send(self, worker: connection.Connection, value: Any) -> None:
        try:
            worker.send(value)
        except OSError:
            raise self._died(worker) from None

    def _receive(self, worker: connection.Connection) -> Any:
        try:
            failed, value = worker.recv()
        except (EOFError, OSError):
            raise self._died(worker) from None
        if failed:
            raise value
        return value

    def _died(self, worker: connection.Connection) -> ModelwrightError:
        code = self._processes[worker].wait()
        if code == -9:
            end, advice = "signal 9, often because memory ran out", ", perhaps with fewer [data] workers"
        else:
            end, advice = f"signal {-code}" if code < 0 else f"exit code {code}", ""
        return ModelwrightError(
            f"a worker process died while preparing the data ({end}): finished shards are kept; run the same command "
            f"again to continue{advice}"
        )


def main() -> None:
    """The whole life of a worker process: job after job, item after item, until the runner closes the pipe."""
    pipe = connection.Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, OSError), contextlib.ExitStack() as stack:
        do: Callable[[Any, Tick], Any] | None = None
        while True:
            item = pipe.recv()
            if isinstance(item, _Begin):
                stack.close()
                job, do = item.job, None
                continue
            try:
                do = do or stack.enter_context(job.opened(None))
                answer = False, do(item, lambda: None)
            except Exception as error:  # noqa: BLE001 - the runner must hear of any error
                answer = True, _portable(error)
            pipe.send(answer)


def _portable(error: Exception) -> ModelwrightError:
    """An error that can be sent through a pipe: some cannot be pickled or unpickled."""
    if isinstance(error, ModelwrightError):
        with contextlib.suppress(Exception):
            return pickle.loads(pickle.dumps(error))  # type: ignore[no-any-return]  # noqa: S301 - our own
        return ModelwrightError(str(error))
    traceback.print_exception(error)
    return ModelwrightError(f"preparing the data failed: {type(error).__name__}: {error}")
