"""The handlers of both services: every method of the contract is among them."""

from __future__ import annotations

from typing import Any, Never

import grpc

from modelwright.grpc_server.errors import RequestError, abort
from modelwright.grpc_server.models.table import ModelTable
from modelwright.grpc_server.rpc import codec, inference_service, model_service

INFERENCE = inference_service.DESCRIPTOR
MODEL = model_service.DESCRIPTOR


def inference_handler(table: ModelTable, *, limit: int) -> grpc.GenericRpcHandler[Any, Any]:
    """The handler of InferenceService, for requests of at most `limit` bytes."""
    return _handler(INFERENCE, inference_service.InferenceService(table).methods(limit))


def model_handler(table: ModelTable, *, limit: int) -> grpc.GenericRpcHandler[Any, Any]:
    """The handler of ModelService, for requests of at most `limit` bytes."""
    return _handler(MODEL, model_service.ModelService(table).methods(limit))


def _handler(service: Any, methods: codec.Methods) -> grpc.GenericRpcHandler[Any, Any]:
    complete = {method.name: methods.get(method.name) or _to_come(method) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, complete)


def _to_come(method: Any) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(_requests: Any, context: codec.Context) -> Never:
        message = f"{method.name} is not in this version of Modelwright: upgrade the server"
        await abort(context, RequestError(grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", message))

    return grpc.stream_stream_rpc_method_handler(refuse)
