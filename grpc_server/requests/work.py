"""Run an admitted request in the engine, for gRPC and HTTP alike.

Example:
    with table.lease(request.model) as lease:
        work = await chat_work(lease, request)
        async with contextlib.aclosing(work.pieces()) as pieces:
            async for piece in pieces:
                ...
        work.finish_reason, work.usage
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from attrs import define, field

from modelwright.core.api.answers import ThinkingSplitter
from modelwright.core.api.generation import Answer, Delta, GenerationRequest
from modelwright.core.api.records import Finish
from modelwright.grpc_server.errors import ended_early
from modelwright.grpc_server.models.served import Lease
from modelwright.grpc_server.requests import admit as requests
from modelwright.v1 import common_pb2

_FINISH: dict[Finish, common_pb2.FinishReason] = {
    "stop": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
}


@define(eq=False)
class Work:
    """An admitted request. Make one with `chat_work` or `text_work`.

    Attributes:
        lease: the model that answers, held until the lease's block ends.
        request: the request to the engine.
        answer: the answer so far.
    """

    lease: Lease
    request: GenerationRequest
    answer: Answer = field(factory=Answer)

    async def pieces(self) -> AsyncGenerator[Delta, None]:
        """Run the engine. Closing the generator (`contextlib.aclosing`) cancels the request.

        Raises:
            RequestError: the engine or the server ended it early (UNAVAILABLE).
        """
        engine = self.lease.model.engine
        with self.lease.cutoff.running(lambda: engine.cancel(self.request.id)):
            stream = engine.submit(self.request)
            try:
                async for delta in stream:
                    piece = self.answer.add(delta)
                    if piece.text or piece.thinking or piece.token_ids:
                        yield piece
            finally:
                if self.answer.finish is None:
                    engine.cancel(self.request.id)
                if hasattr(stream, "aclose"):
                    await stream.aclose()
        if self.answer.finish not in _FINISH:
            raise ended_early()

    async def finished(self) -> Answer:
        """The whole answer.

        Raises:
            RequestError: the engine or the server ended it early (UNAVAILABLE).
        """
        async with contextlib.aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass
        return self.answer

    @property
    def finish_reason(self) -> common_pb2.FinishReason:
        """Why the answer ended, as the protocol's enum; `answer.finish` is the engine's word."""
        assert self.answer.finish is not None
        return _FINISH[self.answer.finish]

    @property
    def usage(self) -> common_pb2.Usage:
        """The tokens used so far."""
        return common_pb2.Usage(prompt_tokens=len(self.request.prompt), completion_tokens=len(self.answer.token_ids))


async def chat_work(lease: Lease, request: Any) -> Work:
    """Admit a ChatRequest or a ChatStreamRequest; thinking is separated from the answer's text.

    Raises:
        RequestError: a field is not valid, the engine does not support it, or the prompt fills the context.
        TemplateRefusedError: the template refuses the conversation.
    """
    requests.check_adapter(request)
    renderer = lease.model.renderer
    prompt = await requests.chat_prompt(lease.model, request.messages, request.tools)
    admitted = requests.generation_request(lease.model, prompt, request)
    return Work(lease, admitted, Answer(splitter=ThinkingSplitter(inside=renderer.opens_thinking)))


async def text_work(lease: Lease, request: Any) -> Work:
    """Admit a GenerateRequest or a GenerateStreamRequest; thinking stays in the text.

    Raises:
        RequestError: a field is not valid, the engine does not support it, or the prompt fills the context.
    """
    requests.check_adapter(request)
    prompt = await requests.text_prompt(lease.model, request.prompt, "prompt")
    return Work(lease, requests.generation_request(lease.model, prompt, request))
