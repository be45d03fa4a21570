"""A server's life: bind, load, warm, serve, and on a signal finish what runs and leave."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from attrs import field, frozen, validators
from grpc_health.v1 import health, health_pb2

from modelwright.core.api.components import EngineSpec, Registry
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.grpc_server import codec
from modelwright.grpc_server.services import INFERENCE, MODEL, handlers
from modelwright.grpc_server.table import ModelTable

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

# Between this server's limit and gRPC's own, a message that is too large is told so in this server's words.
_LIMIT_MARGIN = 1024 * 1024
# How long the last answers have to leave, and watchers of the health to be told, in seconds.
_PARTING = 1.0

_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s/]+):(?P<port>[0-9]{1,5})")


@frozen(kw_only=True)
class Address:
    """A host and a port to listen on; port 0 lets the system choose. `str()` gives `HOST:PORT`."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT` (`[::1]:50051` for IPv6).

        Raises:
            UsageError: it is neither.
        """
        match = _LISTEN.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise UsageError(
                f"{text!r} is nowhere to listen: expected HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051"
            )
        return cls(host=match["host"].strip("[]"), port=int(match["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@frozen(kw_only=True)
class ServerOptions:
    """How a server behaves.

    Attributes:
        listen: where.
        insecure: whether it may listen where other machines reach it, though nothing is encrypted and nobody is asked
            who they are.
        max_message_bytes: the most bytes of a request.
        max_requests: how many requests may run or wait at once.
        grace: how long running requests may take after a signal, in seconds.
    """

    listen: Address = field(factory=lambda: Address(host="127.0.0.1", port=50051))
    insecure: bool = False
    max_message_bytes: int = field(
        default=4 * 1024 * 1024, validator=validators.and_(validators.ge(1024), validators.le(2**30))
    )
    max_requests: int = field(default=256, validator=validators.ge(1))
    grace: float = field(default=30.0, validator=validators.ge(0.0))


class Server:
    """A gRPC server for the models of a table.

    `bind`, `start` and `stop` are called in this order, on one event loop.
    """

    def __init__(self, table: ModelTable, options: ServerOptions) -> None:
        self._table = table
        self._options = options
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server: Any = None

    async def bind(self) -> Address:
        """Take the port, so that one in use is known before models are loaded; gives the address with the port chosen.

        Raises:
            UsageError: other machines reach the address, and `insecure` is not set.
            ModelwrightError: the address cannot be taken.
        """
        listen = self._options.listen
        if not (listen.is_loopback or self._options.insecure):
            raise UsageError(
                f"{listen} can be reached from other machines, and this version neither encrypts nor asks who calls: "
                "listen on 127.0.0.1, or say --insecure if the network is trusted"
            )
        _check_free(listen)
        # Without so_reuseport=0, a second server on the same port would take half of the first one's connections.
        core_limit = self._options.max_message_bytes + _LIMIT_MARGIN
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", core_limit)]
        )
        try:
            port = self._server.add_insecure_port(str(listen))
        except RuntimeError as error:
            raise ModelwrightError(f"cannot listen on {listen}: {error}") from error
        return Address(host=listen.host, port=port)

    async def start(self) -> None:
        """Begin to answer."""
        limit = self._options.max_message_bytes
        self._server.add_generic_rpc_handlers((*handlers(self._table, limit=limit), self._health_handler(limit)))
        for service in ("", INFERENCE.full_name, MODEL.full_name):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Report NOT_SERVING, refuse new requests, let the running ones finish, free the models.

        Requests that still run when the options' grace has passed, or `hurry` is set, are cancelled.
        """
        await self._health.enter_graceful_shutdown()
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._table.drain(self._options.grace))]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._server is not None:
            await self._server.stop(_PARTING)
        await self._table.close()

    def _health_handler(self, limit: int) -> grpc.GenericRpcHandler[Any, Any]:
        async def watch(request: Any, write: Any) -> None:
            await self._health.Watch(request, _Writer(write))

        request = health_pb2.HealthCheckRequest
        # The protocol of others: a field that we do not know is theirs to add.
        methods = {
            "Check": codec.unary(request, self._health.Check, limit=limit, strict=False),
            "Watch": codec.streaming(request, watch, limit=limit, strict=False),
        }
        return grpc.method_handlers_generic_handler(HEALTH.full_name, methods)


@frozen
class _Writer:
    """What the health service takes for a context: it writes, and no more."""

    write: Callable[[Any], Any]


def _check_free(listen: Address) -> None:
    """Bind for a moment: gRPC itself does not say why it could not."""
    if listen.port == 0:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelwrightError(
            f"cannot listen on {listen}: {reason}: stop what listens there, or choose another with --listen"
        ) from error


def run(
    registry: Registry,
    spec: EngineSpec,
    addresses: Iterable[str],
    options: ServerOptions,
    announce: Callable[[Address, ModelTable], None],
) -> None:
    """Serve the models at `addresses` until SIGINT or SIGTERM; a second signal cuts the grace short.

    Args:
        registry: where models come from.
        spec: the engine that runs them.
        addresses: what to serve.
        options: how.
        announce: called once the server answers, with where and what.

    Raises:
        ModelwrightError: it cannot listen, or a model cannot be loaded.
    """
    table = ModelTable(registry, spec, max_requests=options.max_requests)
    server = Server(table, options)
    stopping, hurry = asyncio.Event(), asyncio.Event()
    with asyncio.Runner() as runner:
        try:
            address = runner.run(server.bind())
            # On the main thread, outside the loop: nobody is being served yet, and Ctrl-C ends it at once.
            table.load(addresses)
            runner.run(_serve(server, table, stopping, hurry, lambda: announce(address, table)))
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
