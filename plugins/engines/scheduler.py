"""The engine's thread: each iteration generates one token for every running request.

A request joins at the next iteration and leaves at the one in which it ends, so none waits for another to end unless
`max_batch` are running. Prompts that arrive together are run together. Then their caches are joined with the running
ones if that does not need much padding.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.generation import Delta
from modelwright.core.api.wording import one_line
from modelwright.plugins.engines.batch import Cohort, Row
from modelwright.plugins.engines.decoding import choose
from modelwright.plugins.engines.loading import LoadedModel

# Maximum number of prompt tokens in one iteration, padding included, because running requests wait for them.
_PREFILL = 8192

Item = tuple[Row, Delta | ModelwrightError]


class Scheduler:
    """Runs rows in its own thread, from its construction to `close`.

    Args:
        model: the model to run.
        max_batch: maximum number of rows at once.
    """

    def __init__(self, model: LoadedModel, max_batch: int) -> None:
        self._model = model
        self._max_batch = max_batch
        # Shared with the callers' threads; the condition's lock protects them.
        self._changed = threading.Condition()
        self._by_id: dict[str, Row] = {}
        self._arrived: list[Row] = []
        self._cancelled: list[Row] = []
        self._closed: str | None = None
        # Used by the thread only.
        self._waiting: deque[Row] = deque()
        self._cohorts: list[Cohort] = []
        self._outbox: list[Item] = []
        self._thread = threading.Thread(target=self._run, name="modelwright-torch-engine", daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        """Queue a row.

        Raises:
            UsageError: a request with the same id runs.
            ModelwrightError: the scheduler is closed.
        """
        with self._changed:
            if self._closed is not None:
                raise ModelwrightError(f"request {row.request.id!r} is refused: {self._closed}")
            if row.request.id in self._by_id:
                raise UsageError(f"a request with the id {row.request.id!r} is running already; ids must be unique")
            self._by_id[row.request.id] = row
            self._arrived.append(row)
            self._changed.notify()

    def cancel(self, row: Row) -> None:
        """End a row at the next iteration; its id can be used again at once."""
        with self._changed:
            row.cancelled = True
            self._release(row)
            self._cancelled.append(row)
            self._changed.notify()

    def cancel_id(self, request_id: str) -> None:
        """End the row with that id, if there is one."""
        with self._changed:
            row = self._by_id.get(request_id)
        if row is not None:
            self.cancel(row)

    def close(self) -> None:
        """Cancel all rows and wait for the thread to end."""
        with self._changed:
            self._closed = self._closed or "the engine is closed"
            self._changed.notify()
        self._thread.join()

    def _release(self, row: Row) -> None:
        if self._by_id.get(row.request.id) is row:
            del self._by_id[row.request.id]

    # Everything below runs in the thread.

    def _run(self) -> None:
        try:
            if self._model.threads is not None:
                torch.set_num_threads(self._model.threads)
            with torch.inference_mode():
                while self._wait():
                    self._iterate()
                    self._deliver()
            self._end_all(Row.cancel)
        except BaseException as error:
            with self._changed:
                self._closed = f"the engine broke: {type(error).__name__}: {error}"
            failure = ModelwrightError(self._closed)
            self._end_all(lambda _: failure)
            raise

    def _wait(self) -> bool:
        """Sleep until there is something to do; returns whether to continue."""
        with self._changed:
            while not (self._arrived or self._cancelled or self._waiting or self._cohorts or self._closed):
                self._changed.wait()
            self._waiting += self._arrived
            self._arrived = []
            return self._closed is None

    def _iterate(self) -> None:
        self._drop_cancelled()
        running = list(self._cohorts)
        for rows in self._admitted():
            cohort = Cohort(self._model)
            with self._failing(rows):
                self._advance(rows, cohort.prefill(rows))
                self._cohorts.append(cohort)
        for cohort in running:
            with self._failing(cohort.rows):
                self._advance(cohort.rows, cohort.step())
        self._drop_ended()
        self._join_cohorts()

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
        if not cancelled:
            return
        for row in cancelled:
            if not row.ended:
                self._send(row, row.cancel())
        self._waiting = deque(row for row in self._waiting if not row.ended)
        self._drop_ended()

    def _drop_ended(self) -> None:
        for cohort in self._cohorts:
            with self._failing(cohort.rows):
                cohort.drop_ended()
        self._cohorts = [cohort for cohort in self._cohorts if any(not row.ended for row in cohort.rows)]

    def _admitted(self) -> Iterator[Sequence[Row]]:
        """Take as many rows from the queue as fit, in order, grouped by similar length."""
        room = self._max_batch - sum(len(cohort.rows) for cohort in self._cohorts)
        taken: list[Row] = []
        widest = 0
        while self._waiting and len(taken) < room:
            widest = max(widest, len(self._waiting[0].request.prompt))
            if taken and widest * (len(taken) + 1) > _PREFILL:
                break
            taken.append(self._waiting.popleft())
        taken.sort(key=lambda row: len(row.request.prompt))
        start = 0
        for end in range(1, len(taken) + 1):
            if end == len(taken) or len(taken[end].request.prompt) > 2 * len(taken[start].request.prompt) + 32:
                yield taken[start:end]
                start = end

    def _advance(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Choose each row's next token and post the new deltas."""
        chosen = choose(
            logits,
            [row.request.sampling for row in rows],
            [row.generator for row in rows],
            [row.request.logprobs for row in rows],
        )
        for row, token, logprob, valid in zip(rows, chosen.tokens, chosen.logprobs, chosen.valid, strict=True):
            if valid:
                self._send(row, row.accept(token, logprob))
            else:
                row.ended = True
                self._send(
                    row,
                    ModelwrightError(
                        f"request {row.request.id!r}: the model's logits are not finite numbers after {row.length} "
                        "tokens; its weights are damaged, its training diverged, or its dtype is too narrow"
                    ),
                )

    def _join_cohorts(self) -> None:
        joined: list[Cohort] = []
        for cohort in self._cohorts:
            target = next((other for other in joined if other.can_join(cohort)), None)
            if target is None:
                joined.append(cohort)
                continue
            with self._failing(target.rows + cohort.rows):
                target.join(cohort)
        self._cohorts = joined
        self._drop_ended()

    @contextmanager
    def _failing(self, rows: Sequence[Row]) -> Iterator[None]:
        """Make an error of the model, such as a lack of memory, end only these rows."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is sent to each caller
            text = one_line(error)
            for row in rows:
                if not row.ended:
                    row.ended = True
                    failure = ModelwrightError(
                        f"request {row.request.id!r}: the model failed in a batch of {len(rows)}: "
                        f"{type(error).__name__}: {text:.300}"
                    )
                    failure.__cause__ = error
                    self._send(row, failure)

    def _end_all(self, ending: Callable[[Row], Delta | ModelwrightError]) -> None:
        with self._changed:
            self._waiting += self._arrived
            self._arrived = []
        # By id, not by list and cohort, so that a row between the two ends as well.
        for row in list(self._by_id.values()):
            if not row.ended:
                row.ended = True
                self._send(row, ending(row))
        self._waiting.clear()
        self._cohorts.clear()
        self._deliver()

    def _send(self, row: Row, item: Delta | ModelwrightError) -> None:
        self._outbox.append((row, item))

    def _deliver(self) -> None:
        """Send the new deltas to the callers, with one call into each event loop."""
        outbox, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list[Item]] = {}
        with self._changed:
            for row, item in outbox:
                if row.ended:
                    self._release(row)
                by_loop.setdefault(row.loop, []).append((row, item))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_post, items)
            except RuntimeError:  # the loop is closed, so nobody waits
                for row, _ in items:
                    self.cancel(row)


def _post(items: Sequence[Item]) -> None:
    for row, item in items:
        row.mailbox.put_nowait(item)
