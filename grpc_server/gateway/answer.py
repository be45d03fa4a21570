"""A request that the table has admitted: its answers, whole or piece by piece, by the same work as over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from modelwright.grpc_server.gateway.request import Asked
from modelwright.grpc_server.gateway.responses import Part, Shape
from modelwright.grpc_server.models.table import ModelTable
from modelwright.grpc_server.requests.work import Piece, Work, chat_work, text_work

# The number of an answer, and a piece of it; None: it has ended.
Event = tuple[int, Piece | None]


def full_address(table: ModelTable, text: str) -> str:
    """The address that is meant: an alias needs no "@" where no model has its name. OpenAI's users give plain names."""
    names = {model.version.name for model in table.models() if table.wants(model)}
    aliases = {route.alias for route in table.routes()}
    return f"@{text}" if text in aliases - names else text


@contextlib.asynccontextmanager
async def admit(table: ModelTable, asked: Asked) -> AsyncIterator[Answering]:
    """Hold the model for a request, and make it ready to answer. Each answer takes one of the server's places.

    Raises:
        RequestError: the model is not served, the server is full or ends, or a value cannot be.
        TemplateRefusedError: the model's chat template refuses the conversation.
    """
    build = chat_work if asked.kind == "chat" else text_work
    with contextlib.ExitStack() as held:
        address = full_address(table, asked.model)
        # Without a pause between them: an alias leads all of them to one model.
        leases = [held.enter_context(table.lease(address)) for _ in asked.requests]
        works = [await build(lease, request) for lease, request in zip(leases, asked.requests, strict=True)]
        yield Answering(asked, works)


class Answering:
    """The answers to an admitted request; to be asked for once, whole or as events."""

    def __init__(self, asked: Asked, works: Sequence[Work]) -> None:
        lease = works[0].lease
        self._asked = asked
        self._works = works
        self._shape = Shape(asked, lease.served(), lease.model.renderer.decode)

    async def whole(self) -> dict[str, Any]:
        """The whole answer.

        Raises:
            RequestError: the engine ended it early (UNAVAILABLE).
        """
        parts = [Part() for _ in self._works]
        async with contextlib.aclosing(_together(self._works)) as pieces:
            async for index, piece in pieces:
                if piece is not None:
                    parts[index].add(piece)
        return self._shape.whole(parts, [work.finish_reason for work in self._works], self._usage())

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream.

        Raises:
            RequestError: the engine ended it early (UNAVAILABLE).
        """
        for index in range(len(self._works)):
            yield self._shape.start(index)
        async with contextlib.aclosing(_together(self._works)) as pieces:
            async for index, piece in pieces:
                event = self._event(index, piece)
                if event is not None:
                    yield event
        if self._asked.include_usage:
            yield self._shape.usage(self._usage())

    def _event(self, index: int, piece: Piece | None) -> dict[str, Any] | None:
        if piece is None:
            return self._shape.end(index, self._works[index].finish_reason)
        part = Part()
        part.add(piece)
        return self._shape.piece(index, part)

    def _usage(self) -> dict[str, int]:
        """A prompt counts once, however many answers it gets."""
        usages = [work.usage for work in self._works]
        prompt = sum(usage.prompt_tokens for usage in usages[:: len(usages) // self._asked.prompts])
        completion = sum(usage.completion_tokens for usage in usages)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _together(works: Sequence[Work]) -> AsyncGenerator[Event, None]:
    """The pieces of all answers as they come. Whoever stops reading cancels them, and so does an error of one."""
    # As long as nobody reads, each work waits with one piece.
    queue: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(maxsize=1)

    async def pump(index: int, work: Work) -> None:
        try:
            async with contextlib.aclosing(work.pieces()) as pieces:
                async for piece in pieces:
                    await queue.put((index, piece))
            await queue.put((index, None))
        except Exception as error:  # noqa: BLE001 - it is raised again where the answers are read
            await queue.put((index, error))

    pumps = [asyncio.ensure_future(pump(index, work)) for index, work in enumerate(works)]
    try:
        left = len(pumps)
        while left:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item is None
            yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
