"""The services of a port: InferenceService, ModelService, health and reflection."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Never

import grpc
from attrs import frozen
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from modelwright.grpc_server.errors import RequestError, abort, invalid
from modelwright.grpc_server.models.served import ServedModels
from modelwright.grpc_server.models.switching import ModelTable
from modelwright.grpc_server.models.watching import Snapshot, describe_route
from modelwright.grpc_server.requests import admit as requests
from modelwright.grpc_server.requests.work import Work, chat_work, text_work
from modelwright.grpc_server.rpc import codec
from modelwright.v1 import common_pb2, inference_pb2, model_pb2

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
# Methods that change the server.
ADMIN = frozenset({"LoadModel", "UnloadModel", "SetAlias"})

_EVENTS = {model_pb2.Model: "model", model_pb2.ModelGone: "gone", model_pb2.Route: "route"}
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

# Newer tools call the first, older ones the second; the messages are the same on the wire.
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class InferenceService:
    """Generate, Chat, their streams, and Tokenize."""

    def __init__(self, served: ServedModels) -> None:
        self._served = served

    def methods(self, limit: int) -> codec.Methods:
        """Make the handlers by method name, for requests of at most `limit` bytes."""
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


class ModelService:
    """ListModels, GetModel, WatchModels; LoadModel, UnloadModel and SetAlias."""

    def __init__(self, table: ModelTable) -> None:
        self._table = table

    def methods(self, limit: int) -> codec.Methods:
        """Make the handlers by method name, for requests of at most `limit` bytes."""
        return {
            "ListModels": codec.unary(model_pb2.ListModelsRequest, self.list_models, limit=limit),
            "GetModel": codec.unary(model_pb2.GetModelRequest, self.get_model, limit=limit),
            "LoadModel": codec.unary(model_pb2.LoadModelRequest, self.load_model, limit=limit),
            "UnloadModel": codec.unary(model_pb2.UnloadModelRequest, self.unload_model, limit=limit),
            "SetAlias": codec.unary(model_pb2.SetAliasRequest, self.set_alias, limit=limit),
            "WatchModels": codec.streaming(model_pb2.WatchModelsRequest, self.watch_models, limit=limit),
        }

    async def list_models(self, _request: Any, _context: codec.Context) -> model_pb2.ListModelsResponse:
        """List what is served."""
        there = self._table.snapshot()
        return model_pb2.ListModelsResponse(models=there.models, routes=there.routes)

    async def get_model(self, request: Any, _context: codec.Context) -> model_pb2.GetModelResponse:
        """Describe one model."""
        model = self._table.find(request.address, field="address").model
        return model_pb2.GetModelResponse(model=self._table.describe(model))

    async def load_model(self, request: Any, _context: codec.Context) -> model_pb2.LoadModelResponse:
        """Load a model."""
        engine = request.engine if request.HasField("engine") else None
        model = await self._table.pin(request.address, engine=engine)
        return model_pb2.LoadModelResponse(model=self._table.describe(model))

    async def unload_model(self, request: Any, _context: codec.Context) -> model_pb2.UnloadModelResponse:
        """Unload a model."""
        model = self._table.unpin(request.address)
        return model_pb2.UnloadModelResponse(model=self._table.describe(model))

    async def set_alias(self, request: Any, _context: codec.Context) -> model_pb2.SetAliasResponse:
        """Switch an alias."""
        if not request.target:
            raise invalid("target", "is empty: expected the address of a model")
        etag = request.etag if request.HasField("etag") else None
        switched = await self._table.switch(request.alias, request.target, etag=etag, persist=request.persist)
        return model_pb2.SetAliasResponse(
            route=describe_route(switched.route), changed=switched.changed, persisted=switched.persisted
        )

    async def watch_models(self, _request: Any, write: codec.Write) -> None:
        """Send everything that is served, then each change, until the caller disconnects or the server shuts down."""
        async with contextlib.aclosing(self._table.changes.watch()) as changes:
            async for change in changes:
                if isinstance(change, Snapshot):
                    await write(model_pb2.WatchModelsResponse(snapshot=self._table.snapshot()))
                else:
                    event = model_pb2.WatchModelsResponse()
                    getattr(event, _EVENTS[type(change)]).CopyFrom(change)
                    await write(event)


@frozen
class _Writer:
    """A context for the health service, which only writes."""

    write: Callable[[Any], Awaitable[None]]


def health_handler(health: Any, *, limit: int) -> grpc.GenericRpcHandler[Any, Any]:
    """Make the handler of a `grpc_health.v1.health.aio.HealthServicer`."""

    async def watch(request: Any, write: codec.Write) -> None:
        await health.Watch(request, _Writer(write))

    request = health_pb2.HealthCheckRequest
    # This protocol is not ours, so unknown fields are accepted.
    methods = {
        "Check": codec.unary(request, health.Check, limit=limit, strict=False),
        "Watch": codec.streaming(request, watch, limit=limit, strict=False),
    }
    return grpc.method_handlers_generic_handler(HEALTH.full_name, methods)


def reflection_handlers(services: Iterable[str], *, limit: int) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """Make the handlers that describe `services` and their messages to tools."""
    # The first is not listed: its file is not available, and tools would request it.
    servicer: Any = ReflectionServicer([*services, HEALTH.full_name, REFLECTION[1]])

    async def info(requests: AsyncIterator[Any], write: codec.Write) -> None:
        async for response in servicer.ServerReflectionInfo(requests, None):
            await write(response)

    method = codec.conversing(reflection_pb2.ServerReflectionRequest, info, limit=limit)
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in REFLECTION]


def inference_handler(table: ModelTable, *, limit: int) -> grpc.GenericRpcHandler[Any, Any]:
    """Make the handler of InferenceService, for requests of at most `limit` bytes."""
    return _handler(INFERENCE, InferenceService(table).methods(limit))


def model_handler(table: ModelTable, *, limit: int) -> grpc.GenericRpcHandler[Any, Any]:
    """Make the handler of ModelService, for requests of at most `limit` bytes."""
    return _handler(MODEL, ModelService(table).methods(limit))


def _handler(service: Any, methods: codec.Methods) -> grpc.GenericRpcHandler[Any, Any]:
    complete = {method.name: methods.get(method.name) or _to_come(method) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, complete)


def _to_come(method: Any) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_requests: Any, context: codec.Context) -> Never:
        message = f"{method.name} is not implemented in this version of Modelwright: upgrade the server"
        await abort(context, RequestError(grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", message))

    return grpc.stream_stream_rpc_method_handler(refuse)
