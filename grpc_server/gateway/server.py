"""The HTTP server: uvicorn, driven within the event loop that serves gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from attrs import evolve

from modelwright.grpc_server.gateway.app import Gateway
from modelwright.grpc_server.gateway.connection import ServerState
from modelwright.grpc_server.models.switching import ModelTable
from modelwright.grpc_server.network.access import Access
from modelwright.grpc_server.network.listening import BACKLOG, Address, bind_socket
from modelwright.grpc_server.network.tls import Tls, check_tls

# Seconds in which cut requests can inform their clients and connections close.
_PARTING = 2.0


class HttpServer:
    """The REST API for the models of a table.

    `bind`, `start` and `stop` are called in this order, on one event loop; `drain` may come before `stop`.

    Args:
        table: the served models.
        listen: the address.
        access: who may call.
        tls: certificate and key; None turns encryption off.
        limit: maximum size of a request's body, in bytes.
    """

    def __init__(self, table: ModelTable, listen: Address, access: Access, tls: Tls | None, limit: int) -> None:
        self._listen = listen
        self._tls = tls
        self._state = ServerState()
        gateway = Gateway(table, access, self._state, limit=limit)
        files: dict[str, Any] = {} if tls is None else {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
        self._config = uvicorn.Config(
            gateway,
            http="h11",
            ws="none",
            lifespan="off",
            # Only failures are logged: requests are private, and garbage on the port is not worth a line.
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=[("server", "modelwright")],
            backlog=BACKLOG,
            **files,
        )
        self._socket: socket.socket | None = None
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    async def bind(self) -> Address:
        """Bind the port and read the TLS files; returns the address with the chosen port.

        Raises:
            UsageError: the TLS files are wrong.
            ModelwrightError: the address cannot be bound.
        """
        if self._tls is not None:
            check_tls(self._tls)
        self._config.load()
        self._socket = bind_socket(self._listen, "--http")
        return evolve(self._listen, port=self._socket.getsockname()[1])

    async def start(self) -> None:
        """Start to answer."""
        assert self._socket is not None, "bind() comes first"
        self._server = _Uvicorn(self._config)
        self._serving = asyncio.ensure_future(self._server.serve([self._socket]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0.001)

    def drain(self) -> None:
        """Refuse new requests and report that at /health; running ones continue."""
        self._state.draining = True

    async def stop(self, grace: float) -> None:
        """Drain, cut requests that still run after `grace` seconds or on cancellation, and close all connections."""
        self.drain()
        try:
            await self._state.ended(grace)
        finally:
            self._state.cut.set()
            await self._state.ended(_PARTING)
            await self._close()

    async def _close(self) -> None:
        if self._server is None or self._serving is None:
            if self._socket is not None:
                self._socket.close()
            return
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._serving), _PARTING)
        self._server.force_exit = True
        for connection in list(self._server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._serving


class _Uvicorn(uvicorn.Server):
    """Uvicorn without signal handlers: the server around it handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield
