"""Decode requests and encode responses.

If a deserializer raises, grpc.aio answers UNKNOWN. So the handlers get bytes, and report an error in them like any
other error in a request. For the same reason they are handlers of request streams that read a single request: otherwise
a call without a whole message would never be answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from modelwright.grpc_server.errors import RequestError, abort

Request = TypeVar("Request", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]
Write = Callable[[Any], Awaitable[None]]
Handler = Callable[[Any, Context], Awaitable[Any]]
StreamHandler = Callable[[Any, Write], Awaitable[None]]
Methods: TypeAlias = "dict[str, grpc.RpcMethodHandler[Any, Any]]"  # generic for type checkers only

# A larger message is read in a thread, because one with many thousand small parts takes seconds.
QUICK_BYTES = 64 * 1024


def decode(kind: type[Request], data: bytes, *, limit: int, strict: bool = True) -> Request:
    """Read a message.

    Args:
        kind: the message's class.
        data: the received bytes.
        limit: maximum number of bytes.
        strict: whether an unknown field is an error. It is for Modelwright's own messages, so that a field of a newer
            client is not silently ignored.

    Raises:
        RequestError: RESOURCE_EXHAUSTED if it is too large, INVALID_ARGUMENT if it is not a message of that kind.
    """
    if len(data) > limit:
        raise RequestError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "MESSAGE_TOO_LARGE",
            f"the message has {len(data)} bytes, but this server accepts at most {limit}: send less",
            metadata={"bytes": len(data), "limit": limit},
        )
    try:
        message = kind.FromString(data)
    except DecodeError as error:
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", f"the bytes are not a valid message: {error}"
        ) from error
    if strict:
        _check_known(message, kind.DESCRIPTOR.name)
    return message


def _check_known(message: Message, path: str) -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "UNKNOWN_FIELD",
            f"{path} has an unknown field with number {unknown[0].field_number}: leave it out, or upgrade the server",
            metadata={"field": path},
        )
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        for part in [value] if isinstance(value, Message) else value:
            _check_known(part, f"{path}.{field.name}")


async def _received(context: Context) -> bytes:
    """Read the message of a call.

    Raises:
        RequestError: there is no message, or it is incomplete.
    """
    data = await context.read()
    if data is grpc.aio.EOF:  # type: ignore[attr-defined]
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "the call has no message, or an incomplete one"
        )
    assert isinstance(data, bytes)
    return data


async def _decoded(kind: type[Message], data: bytes, limit: int, *, strict: bool) -> Any:
    if len(data) <= QUICK_BYTES:
        return decode(kind, data, limit=limit, strict=strict)
    return await asyncio.to_thread(decode, kind, data, limit=limit, strict=strict)


def unary(kind: type[Message], handler: Handler, *, limit: int, strict: bool = True) -> grpc.RpcMethodHandler[Any, Any]:
    """Make a method with one response, which `handler(request, context)` returns."""

    async def call(_requests: Any, context: Context) -> bytes:
        try:
            data = await _received(context)
            response: Message = await handler(await _decoded(kind, data, limit, strict=strict), context)
            return response.SerializeToString()
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure has a status
            await abort(context, error)

    return grpc.stream_unary_rpc_method_handler(call)


def streaming(
    kind: type[Message], handler: StreamHandler, *, limit: int, strict: bool = True
) -> grpc.RpcMethodHandler[Any, Any]:
    """Make a method with a stream of responses: `handler(request, write)` sends each by `await write(message)`.

    The handler writes instead of yielding. So if a client disconnects while a message waits to be sent, the handler
    stops at once, and its cleanup does not wait for the garbage collector.
    """

    async def call(_requests: Any, context: Context) -> None:
        async def write(message: Any) -> None:
            await context.write(message.SerializeToString())

        try:
            data = await _received(context)
            await handler(await _decoded(kind, data, limit, strict=strict), write)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure has a status
            await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(call)


def conversing(kind: type[Message], handler: StreamHandler, *, limit: int) -> grpc.RpcMethodHandler[Any, Any]:
    """Make a method with streams on both sides: `handler(requests, write)`. Unknown fields are ignored."""

    async def call(data: AsyncIterator[bytes], context: Context) -> None:
        async def requests() -> AsyncIterator[Message]:
            async for part in data:
                yield await _decoded(kind, part, limit, strict=False)

        async def write(message: Any) -> None:
            await context.write(message.SerializeToString())

        try:
            await handler(requests(), write)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - every failure has a status
            await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(call)
