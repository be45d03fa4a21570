"""The rows of running requests, and cohorts: rows that share a cache of keys and values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.generation import Delta, GenerationRequest
from modelwright.core.api.records import Finish
from modelwright.plugins.engines.decoding import TextStream
from modelwright.plugins.engines.loading import LoadedModel


@define(eq=False)
class Row:
    """A request and its state. All but `cancelled` belongs to the engine's thread.

    Attributes:
        request: the request.
        text: decodes its tokens and finds its stop strings.
        generator: its random numbers.
        limit: maximum number of tokens to generate.
        loop: the caller's event loop.
        mailbox: the caller's queue; used in its loop only.
        length: number of tokens in the cache.
        last: the newest token, which is not in the cache yet.
        generated: number of generated tokens.
        ended: whether its last delta or its error was made.
        cancelled: whether it was cancelled.
    """

    request: GenerationRequest
    text: TextStream
    generator: torch.Generator
    limit: int
    loop: asyncio.AbstractEventLoop
    mailbox: asyncio.Queue[Delta | ModelwrightError] = field(factory=asyncio.Queue)
    length: int = 0
    last: int = 0
    generated: int = 0
    ended: bool = False
    cancelled: bool = False

    def accept(self, token: int, logprob: float | None) -> Delta:
        """Add the chosen token; returns the new delta."""
        self.last = token
        self.generated += 1
        finish: Finish | None = None
        if token in self.request.stop_token_ids:
            text, finish = self.text.finish()[0], "stop"
        else:
            text, stopped = self.text.push(token)
            if not stopped and self.generated >= self.limit:
                rest, stopped = self.text.finish()
                text, finish = text + rest, "length"
            finish = "stop" if stopped else finish
        self.ended = finish is not None
        return Delta(text=text, token_ids=(token,), logprobs=None if logprob is None else (logprob,), finish=finish)

    def cancel(self) -> Delta:
        """End the request; returns the text that was held back."""
        self.ended = True
        return Delta(text=self.text.finish()[0], logprobs=() if self.request.logprobs else None, finish="cancelled")


class DeltaStream(AsyncIterator[Delta]):
    """The deltas of a request as they come.

    Like an asynchronous generator, it cancels its request when it is closed or dropped, or when the task that waits for
    it is cancelled.
    """

    def __init__(self, mailbox: asyncio.Queue[Delta | ModelwrightError], cancel: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._cancel = cancel
        self._over = False

    def __aiter__(self) -> DeltaStream:
        return self

    async def __anext__(self) -> Delta:
        if self._over:
            raise StopAsyncIteration
        try:
            item = await self._mailbox.get()
        except asyncio.CancelledError:
            self._close()
            raise
        if isinstance(item, ModelwrightError):
            self._over = True
            raise item
        self._over = item.finish is not None
        return item

    async def aclose(self) -> None:
        """Cancel the request if it still runs."""
        self._close()

    def _close(self) -> None:
        if not self._over:
            self._over = True
            self._cancel()

    def __del__(self) -> None:
        self._close()


# Rows up to this length share a cache even if their lengths differ, since that wastes little.
_SHORT = 256


class Cohort:
    """Rows that share a cache.

    Attributes:
        rows: in the order of the cache's rows; `row.length` counts a row's cached tokens.
        width: columns of the cache, padding included.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._cache: Any = model.cache()
        self.rows: list[Row] = []
        self.width = 0

    def prefill(self, rows: Sequence[Row]) -> Tensor:
        """Run the rows' prompts; returns the logits for their first tokens, `[rows, vocabulary]`."""
        self.rows = list(rows)
        self.width = max(len(row.request.prompt) for row in rows)
        padded = [(0,) * (self.width - len(row.request.prompt)) + row.request.prompt for row in rows]
        for row in rows:
            row.length = len(row.request.prompt)
        mask = self._mask()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._model.forward(self._tensor(padded), mask, positions, self._cache)

    def step(self) -> Tensor:
        """Run each row's last token; returns the logits for its next, `[rows, vocabulary]`."""
        tokens = self._tensor([[row.last] for row in self.rows])
        positions = self._tensor([[row.length] for row in self.rows])
        self.width += 1
        for row in self.rows:
            row.length += 1
        return self._model.forward(tokens, self._mask(), positions, self._cache)

    def drop_ended(self) -> None:
        """Remove the rows that have ended from the cache."""
        kept = [index for index, row in enumerate(self.rows) if not row.ended]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if not self.rows:
            return
        self._cache.reorder_cache(self._tensor(kept))
        longest = max(row.length for row in self.rows)
        if self._model.attends:
            for layer in self._layers():
                layer.keys, layer.values = layer.keys[:, :, -longest:], layer.values[:, :, -longest:]
            self.width = longest

    def can_join(self, other: Cohort) -> bool:
        """Whether a cache for both would waste little on padding."""
        rows = self.rows + other.rows
        width = max(self.width, other.width)
        used = sum(row.length for row in rows)
        return self._model.attends and (width <= _SHORT or width * len(rows) <= 2 * used)

    def join(self, other: Cohort) -> None:
        """Take over another cohort's rows."""
        width = max(self.width, other.width)
        for mine, theirs in zip(self._layers(), other._layers(), strict=True):
            mine.keys = torch.cat([_pad(mine.keys, width), _pad(theirs.keys, width)])
            mine.values = torch.cat([_pad(mine.values, width), _pad(theirs.values, width)])
        self.rows += other.rows
        self.width = width

    def _layers(self) -> list[Any]:
        # Some models share one layer's keys and values among several layers, and leave those of the others empty.
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def _mask(self) -> Tensor:
        padding = self.width - self._tensor([row.length for row in self.rows])
        columns = torch.arange(self.width, device=self._model.device)
        return (columns >= padding.unsqueeze(1)).long()

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


def _pad(states: Tensor, width: int) -> Tensor:
    """Pad `[rows, heads, columns, size]` on the left to `width` columns."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
