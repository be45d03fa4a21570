"""A gRPC port of the server, and the gate that decides who may call what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
from attrs import evolve, frozen

from modelwright.core.api.errors import ModelwrightError
from modelwright.grpc_server.errors import RequestError, abort
from modelwright.grpc_server.network.access import Access, Scope
from modelwright.grpc_server.network.listening import Address, check_free
from modelwright.grpc_server.rpc import codec
from modelwright.grpc_server.rpc.services import ADMIN, MODEL

_ADMIN = frozenset(f"/{MODEL.full_name}/{method}" for method in ADMIN)
# Health checks need no token; they only show whether the server is alive.
_OPEN = "/grpc.health.v1.Health/"


@frozen
class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic for type checkers only
    """Passes calls that `access` allows, and refuses others before their messages are read."""

    _access: Access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the method's handler, or one that refuses."""
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
    """The header's value; None if it is given several times, because it is unclear which one counts."""
    values = [value for key, value in metadata or () if key == "authorization"]
    return values[0] if len(values) == 1 else None


def _refusing(error: RequestError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that reads nothing and fits any kind of method."""

    async def refuse(_requests: Any, context: codec.Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


# gRPC's own limit is this much higher, so that a message just above the server's limit gets the server's error.
_LIMIT_MARGIN = 1024 * 1024


class GrpcPort:
    """A gRPC port. `bind`, `start` and `stop` are called in this order, on one event loop.

    Args:
        listen: the address.
        flag: the option of the command line that sets it.
        access: who may call what.
        credentials: for TLS; None turns encryption off.
        limit: maximum size of a request, in bytes.
    """

    def __init__(
        self, listen: Address, flag: str, access: Access, credentials: grpc.ServerCredentials | None, *, limit: int
    ) -> None:
        self._listen = listen
        self._flag = flag
        self._access = access
        self._credentials = credentials
        self._limit = limit
        self._server: Any = None

    async def bind(self) -> Address:
        """Bind the port; returns the address with the chosen port.

        Raises:
            ModelwrightError: it cannot be bound.
        """
        check_free(self._listen, self._flag)
        # Without so_reuseport=0, a second server on the same port would get half of the connections.
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", self._limit + _LIMIT_MARGIN)]
        self._server = grpc.aio.server(interceptors=[Gate(self._access)], options=options)
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(str(self._listen))
            else:
                port = self._server.add_secure_port(str(self._listen), self._credentials)
        except RuntimeError as error:
            raise ModelwrightError(f"cannot listen on {self._listen}: {error}") from error
        return evolve(self._listen, port=port)

    async def start(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Start to answer with these handlers."""
        self._server.add_generic_rpc_handlers(tuple(handlers))
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Refuse new calls, and end those that still run after `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)
