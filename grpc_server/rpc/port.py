"""One port on which a server answers gRPC, and the gate before it: who may call what."""

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


# Between this server's limit and gRPC's own, a message that is too large is refused in this server's words.
_LIMIT_MARGIN = 1024 * 1024


class GrpcPort:
    """A gRPC port. `bind`, `start` and `stop` are called in this order, on one event loop.

    Args:
        listen: where.
        flag: the option of the command line that says so.
        access: who may call what.
        credentials: of TLS; None: nothing is encrypted.
        limit: the most bytes of a request.
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
        """Take the port; gives the address with the port chosen.

        Raises:
            ModelwrightError: it cannot be taken.
        """
        check_free(self._listen, self._flag)
        # Without so_reuseport=0, a second server on the same port would take half of the first one's connections.
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
        """Begin to answer, by these handlers."""
        self._server.add_generic_rpc_handlers(tuple(handlers))
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no more calls, and end those that still run after `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)
