"""One port on which a server answers gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from attrs import evolve

from modelwright.core.api.errors import ModelwrightError
from modelwright.grpc_server.network.access import Access
from modelwright.grpc_server.network.listening import Address, check_free
from modelwright.grpc_server.rpc.gate import Gate

# Between this server's limit and gRPC's own, a message that is too large is told so in this server's words.
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
