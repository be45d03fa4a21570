"""The server's options and life: bind, load, warm and serve; on a signal, finish running requests and exit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from attrs import field, frozen, validators
from grpc_health.v1 import health, health_pb2

from modelwright.core.api.components import EngineSpec, Registry
from modelwright.core.api.errors import UsageError
from modelwright.grpc_server.models.switching import ModelTable
from modelwright.grpc_server.network.access import Access
from modelwright.grpc_server.network.listening import Address
from modelwright.grpc_server.network.tls import Tls, check_tls, server_credentials
from modelwright.grpc_server.rpc.port import GrpcPort
from modelwright.grpc_server.rpc.services import (
    INFERENCE,
    MODEL,
    health_handler,
    inference_handler,
    model_handler,
    reflection_handlers,
)

_ELSEWHERE = "this port does not accept calls that change the server: use the admin port"
_NOWHERE = "this server does not accept calls that change it: start it with an admin port (--admin)"


@frozen(kw_only=True)
class ServerOptions:
    """How a server behaves.

    Attributes:
        listen: the address for gRPC.
        http: the address for HTTP; None turns HTTP off.
        admin: a separate address for admin calls; None takes them at `listen`, if only this machine can reach it.
        tls: certificate and key, for every port; None turns encryption off.
        token: token that every call needs; None lets everyone call.
        admin_token: token that admin calls need; None means `token`.
        insecure: whether the server may listen on an address that other machines can reach without encryption, or
            without a token for admin calls.
        max_message_bytes: maximum size of a request, in bytes.
        max_requests: maximum number of requests that run or wait at once.
        grace: seconds that running requests may take after a signal.
    """

    listen: Address = field(factory=lambda: Address(host="127.0.0.1", port=50051))
    http: Address | None = None
    admin: Address | None = None
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    insecure: bool = False
    max_message_bytes: int = field(
        default=4 * 1024 * 1024, validator=validators.and_(validators.ge(1024), validators.le(2**30))
    )
    max_requests: int = field(default=256, validator=validators.ge(1))
    grace: float = field(default=30.0, validator=validators.ge(0.0))

    def check(self) -> None:
        """Check that the options do not open the server to anyone by mistake.

        Raises:
            UsageError: other machines could call it unprotected and `insecure` is not set, or users and admins have the
                same token.
        """
        if self.token is not None and self.token == self.admin_token:
            raise UsageError(
                "--admin-token-file has the same token as --token-file, so every user could change the server: use a "
                "different token, or leave it out if that is intended"
            )
        if self.insecure:
            return
        for flag, address in (("--listen", self.listen), ("--http", self.http), ("--admin", self.admin)):
            if address is not None and not address.is_loopback and self.tls is None:
                raise UsageError(
                    f"{flag} {address} can be reached from other machines without encryption: set --tls-cert and "
                    "--tls-key, listen on 127.0.0.1, or pass --insecure if the network is trusted"
                )
        if self.admin is not None and not self.admin.is_loopback and self.admin_token is None:
            raise UsageError(
                f"--admin {self.admin} can be reached from other machines without a token: set --admin-token-file, "
                "listen on 127.0.0.1, or pass --insecure if the network is trusted"
            )

    def grpc_access(self) -> Access:
        """Who may call what on the gRPC port."""
        closed = _ELSEWHERE if self.admin is not None else None if self.listen.is_loopback else _NOWHERE
        return self._access(closed)

    def admin_access(self) -> Access:
        """Who may call what on the admin port."""
        return self._access(None)

    def http_access(self) -> Access:
        """Who may call what over HTTP, whose one port also takes admin calls that have the admin token."""
        closed = _ELSEWHERE if self.admin is not None else _NOWHERE
        is_open = self.http is None or (self.http.is_loopback and self.admin is None)
        return self._access(None if is_open or self.admin_token is not None else closed)

    def _access(self, no_admin: str | None) -> Access:
        return Access(token=self.token, admin_token=self.admin_token, no_admin=no_admin)


if TYPE_CHECKING:
    from modelwright.grpc_server.gateway import HttpServer

__all__ = ["Address", "Addresses", "Server", "ServerOptions", "run"]

# Seconds in which the last answers are sent and watchers of the health are notified.
_PARTING = 1.0


@frozen(kw_only=True)
class Addresses:
    """The addresses of a server for gRPC, HTTP and admin calls, with the ports that the system chose."""

    listen: Address
    http: Address | None = None
    admin: Address | None = None


Announce = Callable[[Addresses, ModelTable], None]


class Server:
    """Serves the models of a table over gRPC and, if the options say so, over HTTP.

    `bind`, `start` and `stop` are called in this order, on one event loop.
    """

    def __init__(self, table: ModelTable, options: ServerOptions) -> None:
        self._table = table
        self._options = options
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._main: GrpcPort | None = None
        self._admin: GrpcPort | None = None
        self._http: HttpServer | None = None

    async def bind(self) -> Addresses:
        """Bind the ports, so that a port in use is found before models are loaded.

        Raises:
            UsageError: an address is open to other machines unprotected, or the TLS files are wrong.
            ModelwrightError: an address cannot be bound.
        """
        options = self._options
        options.check()
        if options.tls is not None:
            check_tls(options.tls)
        self._main = self._port(options.listen, "--listen")
        listen = await self._main.bind()
        http = admin = None
        if options.admin is not None:
            self._admin = self._port(options.admin, "--admin")
            admin = await self._admin.bind()
        if options.http is not None:
            from modelwright.grpc_server.gateway import HttpServer

            limit = options.max_message_bytes
            self._http = HttpServer(self._table, options.http, options.http_access(), options.tls, limit)
            http = await self._http.bind()
        return Addresses(listen=listen, http=http, admin=admin)

    def _port(self, listen: Address, flag: str) -> GrpcPort:
        options = self._options
        access = options.admin_access() if flag == "--admin" else options.grpc_access()
        credentials = server_credentials(options.tls) if options.tls is not None else None
        return GrpcPort(listen, flag, access, credentials, limit=options.max_message_bytes)

    async def start(self) -> None:
        """Start to answer."""
        assert self._main is not None, "bind() comes first"
        limit = self._options.max_message_bytes
        for service in ("", INFERENCE.full_name, MODEL.full_name):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        models = [model_handler(self._table, limit=limit), health_handler(self._health, limit=limit)]
        both = [INFERENCE.full_name, MODEL.full_name]
        inference = inference_handler(self._table, limit=limit)
        await self._main.start([inference, *models, *reflection_handlers(both, limit=limit)])
        if self._admin is not None:
            await self._admin.start([*models, *reflection_handlers(both[1:], limit=limit)])
        if self._http is not None:
            await self._http.start()

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Report NOT_SERVING, refuse new requests, let the running ones finish, free the models.

        Requests that still run after the options' `grace`, or when `hurry` is set, end with UNAVAILABLE.
        """
        await self._health.enter_graceful_shutdown()
        if self._http is not None:
            self._http.drain()
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._table.drain(self._options.grace))]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await self._table.cut(_PARTING)
        ports = [port.stop(_PARTING) for port in (self._main, self._admin) if port is not None]
        if self._http is not None:
            ports.append(self._http.stop(0.0))
        await asyncio.gather(*ports)
        await self._table.close()


def run(
    registry: Registry,
    spec: EngineSpec,
    addresses: Iterable[str],
    options: ServerOptions,
    announce: Announce,
    *,
    engines: Callable[[str], EngineSpec] | None = None,
) -> None:
    """Serve the models at `addresses` until SIGINT or SIGTERM; a second signal cuts the grace short.

    Args:
        registry: the source of the models.
        spec: the engine that runs them.
        addresses: the models to serve.
        options: of the server.
        announce: called with the server's addresses and models once it answers.
        engines: returns an engine by name, for models that are loaded with another engine.

    Raises:
        ModelwrightError: it cannot listen, or a model cannot be loaded.
    """
    table = ModelTable(registry, spec, max_requests=options.max_requests, engines=engines)
    server = Server(table, options)
    stopping, hurry = asyncio.Event(), asyncio.Event()
    with asyncio.Runner() as runner:
        try:
            bound = runner.run(server.bind())
            # On the main thread, outside the loop: no request is running yet, and Ctrl-C ends it at once.
            table.load(addresses)
            runner.run(_serve(server, table, stopping, hurry, lambda: announce(bound, table)))
        finally:
            runner.run(server.stop(hurry))


async def _serve(
    server: Server, table: ModelTable, stopping: asyncio.Event, hurry: asyncio.Event, announce: Callable[[], None]
) -> None:
    def stop() -> None:
        (hurry if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await table.warm()
    await server.start()
    announce()
    await stopping.wait()
