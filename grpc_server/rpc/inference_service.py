"""InferenceService: asking models."""

from __future__ import annotations

import contextlib
from typing import Any

from modelwright.grpc_server.errors import invalid
from modelwright.grpc_server.models.served import Served
from modelwright.grpc_server.requests import admit as requests
from modelwright.grpc_server.requests.work import Work, chat_work, text_work
from modelwright.grpc_server.rpc import codec
from modelwright.v1 import common_pb2, inference_pb2

DESCRIPTOR = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]


class InferenceService:
    """Generate, Chat, their streams, and Tokenize."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def methods(self, limit: int) -> codec.Methods:
        """The handlers by method name, for requests of at most `limit` bytes."""
        return {
            "Generate": codec.unary(inference_pb2.GenerateRequest, self.generate, limit=limit),
            "GenerateStream": codec.streaming(inference_pb2.GenerateStreamRequest, self.generate_stream, limit=limit),
            "Chat": codec.unary(inference_pb2.ChatRequest, self.chat, limit=limit),
            "ChatStream": codec.streaming(inference_pb2.ChatStreamRequest, self.chat_stream, limit=limit),
            "Tokenize": codec.unary(inference_pb2.TokenizeRequest, self.tokenize, limit=limit),
        }

    async def generate(self, request: Any, _context: codec.Context) -> inference_pb2.GenerateResponse:
        """Continue a prompt."""
        with self._served.lease(request.model) as lease:
            work = await text_work(lease, request)
            answer = await work.finished()
            return inference_pb2.GenerateResponse(
                served=lease.served(),
                text=answer.text,
                finish_reason=work.finish_reason,
                usage=work.usage,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
            )

    async def chat(self, request: Any, _context: codec.Context) -> inference_pb2.ChatResponse:
        """Answer a conversation."""
        with self._served.lease(request.model) as lease:
            work = await chat_work(lease, request)
            answer = await work.finished()
            return inference_pb2.ChatResponse(
                served=lease.served(),
                message=common_pb2.Message(
                    role=common_pb2.ROLE_ASSISTANT, content=answer.text, thinking=answer.thinking or None
                ),
                finish_reason=work.finish_reason,
                usage=work.usage,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
            )

    async def generate_stream(self, request: Any, write: codec.Write) -> None:
        """Continue a prompt, piece by piece."""
        with self._served.lease(request.model) as lease:
            await _stream(await text_work(lease, request), inference_pb2.GenerateStreamResponse, write)

    async def chat_stream(self, request: Any, write: codec.Write) -> None:
        """Answer a conversation, piece by piece."""
        with self._served.lease(request.model) as lease:
            await _stream(await chat_work(lease, request), inference_pb2.ChatStreamResponse, write)

    async def tokenize(self, request: Any, _context: codec.Context) -> inference_pb2.TokenizeResponse:
        """Turn a text or a conversation into tokens."""
        requests.check_adapter(request)
        with self._served.lease(request.model) as lease:
            kind = request.WhichOneof("input")
            if kind is None:
                raise invalid("input", "is not set: expected text or conversation")
            if kind == "text":
                tokens = await requests.text_prompt(lease.model, request.text, "text")
            else:
                said = request.conversation
                tokens = await requests.chat_prompt(lease.model, said.messages, said.tools)
            return inference_pb2.TokenizeResponse(
                served=lease.served(), token_ids=tokens, context_length=lease.model.context_length
            )


async def _stream(work: Work, response: Any, write: codec.Write) -> None:
    prompt_tokens = len(work.request.prompt)
    await write(response(start=inference_pb2.StreamStart(served=work.lease.served(), prompt_tokens=prompt_tokens)))
    async with contextlib.aclosing(work.pieces()) as pieces:
        async for piece in pieces:
            delta = inference_pb2.StreamDelta(
                text=piece.text,
                thinking=piece.thinking or None,
                token_ids=piece.token_ids,
                logprobs=piece.logprobs,
            )
            await write(response(delta=delta))
    await write(response(end=inference_pb2.StreamEnd(finish_reason=work.finish_reason, usage=work.usage)))
