"""Jobs on many items: in this process, or shared among worker processes, with the results in the items' order."""

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
# So many items, for each process, may be ahead of the first unfinished one.
AHEAD = 4
# Each process is one thread: they share the cores among themselves.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
Tick = Callable[[], None]


class Job(Protocol[Item_contra, Result_co]):
    """What is done to each item; it is pickled to reach another process."""

    def opened(
        self, plugins: Plugins | None
    ) -> contextlib.AbstractContextManager[Callable[[Item_contra, Tick], Result_co]]:
        """Load what the job needs, and give the function that does it.

        The function gets an item and something to call now and then, which may raise to stop.

        Args:
            plugins: those of the run; None in a process that has to find them.
        """
        ...


def available_processes() -> int:
    """How many processes this machine runs at once, as far as this one may use it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@frozen
class _Begin:
    """Tells a worker of its next job."""

    job: Any


class Pool:
    """Does jobs in order, in this process or in several; use it as a context manager.

    The processes are started when there is work for them, and do one job after the other.

    Args:
        processes: at most so many.
        plugins: for a job that is done in this process.
        inherited: a descriptor that stays open while one of the processes lives, such as a lock's: they may outlive a
            runner that is killed.
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
            process.kill()  # what a worker leaves is whole or is not there
            process.wait()

    def ordered(self, job: Job[Item, Result], items: Iterable[Item], tick: Tick) -> Iterator[Result]:
        """The results of `job` on each item, in order. A single item is no work for other processes.

        Args:
            job: what to do.
            items: asked for as they are needed.
            tick: called often; may raise, which ends the processes.

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
                    stdout=2,  # what a plugin prints is not this command's output
                    pass_fds=(theirs.fileno(), self._inherited),
                    start_new_session=True,  # a Ctrl-C at the terminal is for the runner, which ends them
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
        end = f"signal {-code}, which the system sends when memory runs out" if code == -9 else f"exit code {code}"
        return ModelwrightError(
            f"a worker process died while preparing the data ({end}); what is done is kept, so the same command goes "
            "on; [data] workers sets how many there are"
        )


def main() -> None:
    """A worker process from beginning to end: job after job, item after item, until nobody asks any more."""
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
            except Exception as error:  # noqa: BLE001 - whatever it was, the runner must hear of it
                answer = True, _portable(error)
            pipe.send(answer)


def _portable(error: Exception) -> ModelwrightError:
    """An error that can be sent: some cannot be pickled, or not be made again."""
    if isinstance(error, ModelwrightError):
        with contextlib.suppress(Exception):
            return pickle.loads(pickle.dumps(error))  # type: ignore[no-any-return]  # noqa: S301 - our own
        return ModelwrightError(str(error))
    traceback.print_exception(error)
    return ModelwrightError(f"preparing the data failed: {type(error).__name__}: {error}")
