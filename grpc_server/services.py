"""The handlers of the two services: a request's way through the table, the renderer and the engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Never

import grpc
from attrs import define, field, frozen

from modelwright.core.api.generation import Delta, GenerationRequest
from modelwright.core.api.records import Finish
from modelwright.grpc_server import codec, requests
from modelwright.grpc_server.errors import RequestError, abort, invalid
from modelwright.grpc_server.models import LoadedModel
from modelwright.grpc_server.table import Lease, ModelTable, Route
from modelwright.v1 import common_pb2, inference_pb2, model_pb2

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"]

_FINISH: dict[Finish, common_pb2.FinishReason] = {
    "stop": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
}


@define
class Answer:
    """What an engine has given so far.

    Attributes:
        text: all of it.
        token_ids: the generated tokens.
        logprobs: one natural logarithm a token, where asked for.
        finish: why it ended, once it has.
    """

    text: str = ""
    token_ids: list[int] = field(factory=list)
    logprobs: list[float] = field(factory=list)
    finish: Finish | None = None

    def add(self, delta: Delta) -> None:
        """Take a delta in."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.finish = delta.finish or self.finish


@frozen
class Work:
    """An admitted request: who answers, what the engine is asked, and what it gives."""

    lease: Lease
    request: GenerationRequest
    answer: Answer = field(factory=Answer)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Run the engine. Whoever stops reading, by an error or because the client left, cancels the request.

        Raises:
            RequestError: the engine ended it early (UNAVAILABLE).
        """
        engine = self.lease.model.engine
        stream = engine.submit(self.request)
        try:
            async for delta in stream:
                self.answer.add(delta)
                yield delta
        finally:
            if self.answer.finish is None:
                engine.cancel(self.request.id)
            if hasattr(stream, "aclose"):
                await stream.aclose()
        if self.answer.finish not in _FINISH:
            raise RequestError(
                grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the server ended this request early", retry_after=1.0
            )

    async def finished(self) -> Answer:
        """The whole answer."""
        async with contextlib.aclosing(self.deltas()) as deltas:
            async for _ in deltas:
                pass
        return self.answer

    def finish_reason(self) -> common_pb2.FinishReason:
        """Why the answer ended."""
        assert self.answer.finish is not None
        return _FINISH[self.answer.finish]

    def usage(self) -> common_pb2.Usage:
        """What the answer took."""
        return common_pb2.Usage(prompt_tokens=len(self.request.prompt), completion_tokens=len(self.answer.token_ids))


class InferenceService:
    """Generate, Chat, their streams, and Tokenize."""

    def __init__(self, table: ModelTable) -> None:
        self._table = table

    async def generate(self, request: Any, _context: codec.Context) -> inference_pb2.GenerateResponse:
        """Continue a prompt."""
        with self._table.lease(request.model) as lease:
            work = await self._work(lease, request)
            answer = await work.finished()
            return inference_pb2.GenerateResponse(
                served=lease.served(),
                text=answer.text,
                finish_reason=work.finish_reason(),
                usage=work.usage(),
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
            )

    async def chat(self, request: Any, _context: codec.Context) -> inference_pb2.ChatResponse:
        """Answer a conversation."""
        with self._table.lease(request.model) as lease:
            work = await self._work(lease, request)
            answer = await work.finished()
            return inference_pb2.ChatResponse(
                served=lease.served(),
                message=common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, content=answer.text),
                finish_reason=work.finish_reason(),
                usage=work.usage(),
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
            )

    async def generate_stream(self, request: Any, write: codec.Write) -> None:
        """Continue a prompt, piece by piece."""
        await self._stream(inference_pb2.GenerateStreamResponse, request, write)

    async def chat_stream(self, request: Any, write: codec.Write) -> None:
        """Answer a conversation, piece by piece."""
        await self._stream(inference_pb2.ChatStreamResponse, request, write)

    async def tokenize(self, request: Any, _context: codec.Context) -> inference_pb2.TokenizeResponse:
        """Turn a text or a conversation into tokens."""
        requests.check_adapter(request)
        with self._table.lease(request.model) as lease:
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

    async def _work(self, lease: Lease, request: Any) -> Work:
        requests.check_adapter(request)
        tokens: Sequence[int]
        if "prompt" in request.DESCRIPTOR.fields_by_name:
            tokens = await requests.text_prompt(lease.model, request.prompt, "prompt")
        else:
            tokens = await requests.chat_prompt(lease.model, request.messages, request.tools)
        return Work(lease, requests.generation_request(lease.model, tokens, request))

    async def _stream(self, response: Any, request: Any, write: codec.Write) -> None:
        with self._table.lease(request.model) as lease:
            work = await self._work(lease, request)
            start = inference_pb2.StreamStart(served=lease.served(), prompt_tokens=len(work.request.prompt))
            await write(response(start=start))
            async with contextlib.aclosing(work.deltas()) as deltas:
                async for delta in deltas:
                    if delta.text or delta.token_ids:
                        piece = inference_pb2.StreamDelta(
                            text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs or ()
                        )
                        await write(response(delta=piece))
            end = inference_pb2.StreamEnd(finish_reason=work.finish_reason(), usage=work.usage())
            await write(response(end=end))


class ModelService:
    """ListModels and SetAlias."""

    def __init__(self, table: ModelTable) -> None:
        self._table = table

    async def list_models(self, _request: Any, _context: codec.Context) -> model_pb2.ListModelsResponse:
        """List what is served."""
        routes = self._table.routes()
        return model_pb2.ListModelsResponse(
            models=[self._model(model, routes) for model in self._table.models()],
            routes=[_route(route) for route in routes],
        )

    async def set_alias(self, request: Any, _context: codec.Context) -> model_pb2.SetAliasResponse:
        """Switch an alias."""
        if not request.target:
            raise invalid("target", "is empty: expected the address of a model")
        etag = request.etag if request.HasField("etag") else None
        switched = await self._table.switch(request.alias, request.target, etag=etag, persist=request.persist)
        return model_pb2.SetAliasResponse(
            route=_route(switched.route), changed=switched.changed, persisted=switched.persisted
        )

    def _model(self, model: LoadedModel, routes: Sequence[Route]) -> model_pb2.Model:
        ready = self._table.wants(model)
        described = model_pb2.Model(
            name=model.version.name,
            version=model.version.version,
            digest=model.version.digest,
            state=model_pb2.MODEL_STATE_READY if ready else model_pb2.MODEL_STATE_DRAINING,
            pinned=model.pinned,
            aliases=[route.alias for route in routes if route.model is model],
            engine=model.spec.name,
            abilities=sorted(model.spec.abilities),
            context_length=model.context_length,
            active_requests=model.active,
        )
        described.load_time.FromDatetime(model.loaded)
        return described


def _route(route: Route) -> model_pb2.Route:
    version = route.model.version
    return model_pb2.Route(
        alias=route.alias,
        name=version.name,
        version=version.version,
        digest=version.digest,
        generation=route.generation,
        etag=route.etag,
    )


def handlers(table: ModelTable, *, limit: int) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """The handlers of both services, every method of the contract among them.

    Args:
        table: what is served.
        limit: the most bytes of a request.
    """
    inference, models = InferenceService(table), ModelService(table)
    implemented = {
        INFERENCE: {
            "Generate": codec.unary(inference_pb2.GenerateRequest, inference.generate, limit=limit),
            "GenerateStream": codec.streaming(
                inference_pb2.GenerateStreamRequest, inference.generate_stream, limit=limit
            ),
            "Chat": codec.unary(inference_pb2.ChatRequest, inference.chat, limit=limit),
            "ChatStream": codec.streaming(inference_pb2.ChatStreamRequest, inference.chat_stream, limit=limit),
            "Tokenize": codec.unary(inference_pb2.TokenizeRequest, inference.tokenize, limit=limit),
        },
        MODEL: {
            "ListModels": codec.unary(model_pb2.ListModelsRequest, models.list_models, limit=limit),
            "SetAlias": codec.unary(model_pb2.SetAliasRequest, models.set_alias, limit=limit),
        },
    }
    return [
        grpc.method_handlers_generic_handler(
            service.full_name,
            {method.name: there.get(method.name) or _to_come(method) for method in service.methods},
        )
        for service, there in implemented.items()
    ]


def _to_come(method: Any) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_data: bytes, context: codec.Context) -> Never:
        message = f"{method.name} is not in this version of Modelwright: upgrade the server"
        await abort(context, RequestError(grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", message))

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
