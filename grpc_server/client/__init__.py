"""The client: `Client` and `AsyncClient`, their records and errors. Imports grpc and the generated code only."""

from modelwright.grpc_server.client.aio import AsyncClient, AsyncStream, AsyncWatch
from modelwright.grpc_server.client.errors import ServerError
from modelwright.grpc_server.client.messages import SamplingOptions
from modelwright.grpc_server.client.records import (
    Alias,
    Change,
    Generation,
    Gone,
    Model,
    Part,
    Served,
    Snapshot,
    Tokens,
    Usage,
)
from modelwright.grpc_server.client.sync import Client, Stream, Watch

__all__ = [
    "Alias",
    "AsyncClient",
    "AsyncStream",
    "AsyncWatch",
    "Change",
    "Client",
    "Generation",
    "Gone",
    "Model",
    "Part",
    "SamplingOptions",
    "Served",
    "ServerError",
    "Snapshot",
    "Stream",
    "Tokens",
    "Usage",
    "Watch",
]
