"""The gate before every gRPC call: who may call what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from attrs import frozen

from modelwright.grpc_server.errors import RequestError, abort
from modelwright.grpc_server.network.access import Access, Scope
from modelwright.grpc_server.rpc import codec, model_service

_ADMIN = frozenset(f"/{model_service.DESCRIPTOR.full_name}/{method}" for method in model_service.ADMIN)
# Probes have no token, and learn no more than whether the server lives.
_OPEN = "/grpc.health.v1.Health/"


@frozen
class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic for type checkers only
    """Lets pass what `access` allows; everything else gets its status, before its message is looked at."""

    _access: Access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler, or one that refuses."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if method.startswith(_OPEN):
            return handler
        scope: Scope = "admin" if method in _ADMIN else "use"
        try:
            self._access.check(_authorization(handler_call_details.invocation_metadata), scope)
        except RequestError as error:
            return _refusing(error)
        return handler


def _authorization(metadata: Any) -> str | None:
    """The header's value; several are none: nobody can say which was meant."""
    values = [value for key, value in metadata or () if key == "authorization"]
    return values[0] if len(values) == 1 else None


def _refusing(error: RequestError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that reads nothing; on the wire it stands for any kind of method."""

    async def refuse(_requests: Any, context: codec.Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
