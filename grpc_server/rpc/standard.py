"""The services that every gRPC server is expected to have: grpc.health.v1, and reflection for tools that ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from attrs import frozen
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from modelwright.grpc_server.rpc import codec

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

# Tools ask for the first, older ones for the second; their messages are the same on the wire.
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


@frozen
class _Writer:
    """What the health service takes for a context: it writes, and no more."""

    write: Callable[[Any], Awaitable[None]]


def health_handler(health: Any, *, limit: int) -> grpc.GenericRpcHandler[Any, Any]:
    """The handler of a `grpc_health.v1.health.aio.HealthServicer`."""

    async def watch(request: Any, write: codec.Write) -> None:
        await health.Watch(request, _Writer(write))

    request = health_pb2.HealthCheckRequest
    # The protocol of others: a field that we do not know is theirs to add.
    methods = {
        "Check": codec.unary(request, health.Check, limit=limit, strict=False),
        "Watch": codec.streaming(request, watch, limit=limit, strict=False),
    }
    return grpc.method_handlers_generic_handler(HEALTH.full_name, methods)


def reflection_handlers(services: Iterable[str], *, limit: int) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """Handlers that tell tools of `services`, and what their messages are."""
    # The first is left out of the list: its file is not at hand, and tools would ask for it.
    servicer: Any = ReflectionServicer([*services, HEALTH.full_name, REFLECTION[1]])

    async def info(requests: AsyncIterator[Any], write: codec.Write) -> None:
        async for response in servicer.ServerReflectionInfo(requests, None):
            await write(response)

    method = codec.conversing(reflection_pb2.ServerReflectionRequest, info, limit=limit)
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in REFLECTION]
