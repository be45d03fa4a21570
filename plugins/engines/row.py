"""One running request: what it has generated, and the way its deltas reach the one who asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import torch
from attrs import define, field

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.generation import Delta, GenerationRequest
from modelwright.core.api.records import Finish
from modelwright.plugins.engines.text import TextStream


@define(eq=False)
class Row:
    """A request and its state. All but `cancelled` belongs to the engine's thread.

    Attributes:
        request: what was asked.
        text: decodes its tokens and finds its stop strings.
        generator: its random numbers.
        limit: the most tokens to generate.
        loop: of the one who asked.
        mailbox: where that one waits; touched in its loop only.
        length: tokens in the cache.
        last: the newest token, which is not in the cache yet.
        generated: how many tokens were generated.
        ended: whether its last delta, or its error, was made.
        cancelled: whether someone wants it to end.
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
        """Take the token that was chosen; give what is new."""
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
        """End here; give the text that was held back."""
        self.ended = True
        return Delta(text=self.text.finish()[0], logprobs=() if self.request.logprobs else None, finish="cancelled")


class DeltaStream(AsyncIterator[Delta]):
    """A request's deltas, as they come.

    Like an asynchronous generator it cancels its request when it is closed, dropped, or when the task that waits for it
    is cancelled.
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
        """Cancel the request, if it still runs."""
        self._close()

    def _close(self) -> None:
        if not self._over:
            self._over = True
            self._cancel()

    def __del__(self) -> None:
        self._close()
