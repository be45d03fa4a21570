"""Answers in OpenAI's format, whole or streamed, and the work that makes them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from modelwright.core.api.generation import Answer, Delta
from modelwright.grpc_server.gateway.openai_request import OpenAIRequest
from modelwright.grpc_server.models.switching import ModelTable
from modelwright.grpc_server.requests.work import Work, chat_work, text_work
from modelwright.v1 import common_pb2

Decode = Callable[[Sequence[int]], str]

FINISH = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


class ResponseBuilder:
    """The answers to one request.

    Args:
        request: the request.
        served: the model that answers.
        decode: turns token ids into text.
    """

    def __init__(self, request: OpenAIRequest, served: common_pb2.ServedModel, decode: Decode) -> None:
        self._request = request
        self._chat = request.kind == "chat"
        self._decode = decode
        self._served = _served(served)
        self._frame = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": f"{served.name}@{served.version}",
            "system_fingerprint": served.digest[:12],
        }

    def whole(self, works: Sequence[Work], usage: dict[str, int]) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, work in enumerate(works):
            part, finish = work.answer, work.finish_reason
            said: dict[str, Any] = {"text": part.text}
            if self._chat:
                message = {"role": "assistant", "content": part.text, "refusal": None}
                if part.thinking:
                    message["reasoning_content"] = part.thinking
                said = {"message": message}
            choices.append({"index": index, **said, "logprobs": self._logprobs(part), "finish_reason": FINISH[finish]})
        return {**self._frame, "choices": choices, "usage": usage, "modelwright": self._served}

    def start(self, index: int) -> dict[str, Any]:
        """The first event of an answer: its role, and the model."""
        said = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
        return self._chunk({"index": index, **said, "logprobs": None, "finish_reason": None}, modelwright=self._served)

    def piece(self, index: int, part: Delta) -> dict[str, Any] | None:
        """The next event of an answer; None if there is nothing new."""
        said: dict[str, Any] = {"text": part.text}
        if self._chat:
            delta = {"reasoning_content": part.thinking, "content": part.text}
            said = {"delta": {name: text for name, text in delta.items() if text}}
        if not (part.text or part.thinking or (self._request.logprobs and part.token_ids)):
            return None
        return self._chunk({"index": index, **said, "logprobs": self._logprobs(part), "finish_reason": None})

    def end(self, index: int, finish: common_pb2.FinishReason) -> dict[str, Any]:
        """The last event of an answer, with the reason why it ended."""
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return self._chunk({"index": index, **said, "logprobs": None, "finish_reason": FINISH[finish]})

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last event of a stream if it reports its usage."""
        return {**self._chunk(), "usage": usage}

    def _chunk(self, *choices: dict[str, Any], **more: Any) -> dict[str, Any]:
        frame = {**self._frame, "choices": list(choices), **more}
        if self._chat:
            frame["object"] = "chat.completion.chunk"
        if self._request.include_usage:
            frame["usage"] = None
        return frame

    def _logprobs(self, part: Answer | Delta) -> dict[str, Any] | None:
        """List every generated token, including those of the thinking, of a stop text, and the end token."""
        if not self._request.logprobs:
            return None
        tokens = [self._decode([token]) for token in part.token_ids]
        logprobs = list(part.logprobs or ())
        if not self._chat:
            # Offsets in the text are left out, because a token may be half a character.
            return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": None}
        # Bytes are not reported, because the text of half a character has lost them.
        content: list[dict[str, Any]] = [
            {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []}
            for token, logprob in zip(tokens, logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}


def _served(served: common_pb2.ServedModel) -> dict[str, Any]:
    """The model that answered, in this API's own field."""
    return {
        "name": served.name,
        "version": served.version,
        "digest": served.digest,
        "alias": served.alias if served.HasField("alias") else None,
        "generation": served.alias_generation if served.HasField("alias_generation") else None,
    }


# The index of an answer, and a piece of it; None when it has ended.
Event = tuple[int, Delta | None]


def full_address(table: ModelTable, text: str) -> str:
    """Complete an address: OpenAI's users give plain names, so an alias needs no "@" unless a model has its name."""
    names = {model.version.name for model in table.models() if table.wants(model)}
    aliases = {route.alias for route in table.routes()}
    return f"@{text}" if text in aliases - names else text


@contextlib.asynccontextmanager
async def admit(table: ModelTable, request: OpenAIRequest) -> AsyncIterator[Answers]:
    """Hold the model for a request and admit it. Each answer counts as one of the server's concurrent requests.

    Raises:
        RequestError: the model is not served, the server is full or shutting down, or a value is not valid.
        TemplateRefusedError: the model's chat template refuses the conversation.
    """
    build = chat_work if request.kind == "chat" else text_work
    with contextlib.ExitStack() as held:
        address = full_address(table, request.model)
        # Without an await between them, so that an alias leads all of them to the same model.
        leases = [held.enter_context(table.lease(address)) for _ in request.requests]
        works = [await build(lease, request) for lease, request in zip(leases, request.requests, strict=True)]
        yield Answers(request, works)


class Answers:
    """The answers to an admitted request. Call `whole` or `events`, once."""

    def __init__(self, request: OpenAIRequest, works: Sequence[Work]) -> None:
        lease = works[0].lease
        self._request = request
        self._works = works
        self._responses = ResponseBuilder(request, lease.served(), lease.model.renderer.decode)

    async def whole(self) -> dict[str, Any]:
        """The whole answer.

        Raises:
            RequestError: the engine ended it early (UNAVAILABLE).
        """
        async with contextlib.aclosing(_together(self._works)) as pieces:
            async for _ in pieces:
                pass
        return self._responses.whole(self._works, self._usage())

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a stream.

        Raises:
            RequestError: the engine ended it early (UNAVAILABLE).
        """
        for index in range(len(self._works)):
            yield self._responses.start(index)
        async with contextlib.aclosing(_together(self._works)) as pieces:
            async for index, piece in pieces:
                event = self._event(index, piece)
                if event is not None:
                    yield event
        if self._request.include_usage:
            yield self._responses.usage(self._usage())

    def _event(self, index: int, piece: Delta | None) -> dict[str, Any] | None:
        if piece is None:
            return self._responses.end(index, self._works[index].finish_reason)
        return self._responses.piece(index, piece)

    def _usage(self) -> dict[str, int]:
        """Each prompt counts once, not once for each of its answers."""
        usages = [work.usage for work in self._works]
        prompt = sum(usage.prompt_tokens for usage in usages[:: len(usages) // self._request.prompts])
        completion = sum(usage.completion_tokens for usage in usages)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _together(works: Sequence[Work]) -> AsyncGenerator[Event, None]:
    """Yield the pieces of all answers as they come. Closing the generator, or an error in one answer, cancels all."""
    # While nobody reads, each work holds one piece and waits.
    queue: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue(maxsize=1)

    async def pump(index: int, work: Work) -> None:
        try:
            async with contextlib.aclosing(work.pieces()) as pieces:
                async for piece in pieces:
                    await queue.put((index, piece))
            await queue.put((index, None))
        except Exception as error:  # noqa: BLE001 - raised again by the reader of the answers
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
