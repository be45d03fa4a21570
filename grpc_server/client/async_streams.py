"""Streams of the asynchronous client: an answer piece by piece, and what changes on a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio

from modelwright.grpc_server.client.answer import Gathered
from modelwright.grpc_server.client.errors import ServerError, ended_without_end, server_error
from modelwright.grpc_server.client.records import Change, Generation, Part, Served, to_change

Item = TypeVar("Item")
Begin = Callable[[], Awaitable[Any]]


class _AsyncCall(AsyncIterator[Item], Generic[Item]):
    """A call that begins with its `async with` block or when it is first read, and is cancelled when it is left."""

    def __init__(self, begin: Begin, target: str) -> None:
        self._begin = begin
        self._target = target
        self._call: Any = None

    async def _event(self, *, answering: bool = False) -> Any:
        try:
            if self._call is None:
                self._call = await self._begin()
            event = await self._call.read()
        except grpc.RpcError as error:
            raise server_error(error, self._target, answering=answering) from error
        if event is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise self._ended()
        return event

    def _ended(self) -> ServerError:
        return ended_without_end(self._target)

    async def close(self) -> None:
        """Cancel the request, if it still runs."""
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStream(_AsyncCall[str]):
    """The pieces of an answer's text as they come.

    Use it as `async with client.chat_stream(…) as stream:`, where `served` and `prompt_tokens` are known at once and
    leaving the block cancels the request on the server; or read it at once with `async for`. `thinking` is what the
    model has thought so far, `parts()` gives both as they come, and `await stream.generation()` is the whole answer.
    """

    def __init__(self, begin: Begin, target: str) -> None:
        super().__init__(begin, target)
        self._gathered = Gathered(target)

    @property
    def served(self) -> Served:
        """What answers; known once the stream has begun."""
        return self._gathered.served

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, the chat template's included; known once the stream has begun."""
        return self._gathered.prompt_tokens

    @property
    def thinking(self) -> str:
        """What the model has thought so far."""
        return self._gathered.thinking

    async def __aenter__(self) -> Self:
        try:
            while not self._gathered.started:
                self._gathered.add(await self._event())
        except BaseException:
            await self.close()
            raise
        return self

    async def __anext__(self) -> str:
        while not self._gathered.ended:
            part = await self._next()
            if part is not None and part.text:
                return part.text
        raise StopAsyncIteration

    async def parts(self) -> AsyncIterator[Part]:
        """The rest of the answer: pieces of its thinking and of its text.

        Raises:
            ServerError: the request failed.
        """
        while not self._gathered.ended:
            part = await self._next()
            if part is not None:
                yield part

    async def generation(self) -> Generation:
        """The whole answer; what has not come yet is waited for.

        Raises:
            ServerError: the request failed.
        """
        while not self._gathered.ended:
            await self._next()
        return self._gathered.generation()

    async def _next(self) -> Part | None:
        return self._gathered.add(await self._event(answering=self._gathered.started))


class AsyncWatch(_AsyncCall[Change]):
    """What a server has, a `Snapshot` first, then each change: see `Watch`."""

    async def __anext__(self) -> Change:
        while True:
            change = to_change(await self._event())
            if change is not None:
                return change
