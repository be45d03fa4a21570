"""Turn exceptions into a google.rpc.Status: code, sentence, ErrorInfo, and RetryInfo if waiting helps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Never

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from modelwright.core.api.errors import (
    AliasConflictError,
    ModelNotFoundError,
    ModelwrightError,
    RegistryError,
    UsageError,
)
from modelwright.core.chat.renderer import TemplateRefusedError
from modelwright.v1 import common_pb2

DOMAIN = "modelwright"

# A status travels in HTTP/2 headers, and clients accept 8 KiB of them in all. The message is in them twice, once with
# each byte that is not ASCII written as three.
MESSAGE_BYTES = 1000
METADATA_BYTES = 200

# The first kind that fits counts, so special ones come before general ones.
_KINDS: tuple[tuple[type[ModelwrightError], grpc.StatusCode, str], ...] = (
    (TemplateRefusedError, grpc.StatusCode.INVALID_ARGUMENT, "TEMPLATE_REFUSED"),
    (ModelNotFoundError, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    (AliasConflictError, grpc.StatusCode.ABORTED, "ALIAS_CONFLICT"),
    (RegistryError, grpc.StatusCode.FAILED_PRECONDITION, "REGISTRY_FAILED"),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    (ModelwrightError, grpc.StatusCode.INTERNAL, "INTERNAL"),  # already a clear line: logits that are not finite, say
)

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that gets a status instead of an answer.

    Attributes:
        code: the status code.
        reason: a name of the proto's ErrorReason, without the prefix.
        message: a sentence that names the field and says what is expected.
        metadata: facts for programs.
        retry_after: seconds after which a retry may succeed; None if it would not.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        common_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")  # a reason that the proto does not list is a bug
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after


def invalid(field: str, message: str) -> RequestError:
    """The error for a field with an invalid value."""
    return RequestError(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", f"{field} {message}", metadata={"field": field}
    )


def unsupported(field: str, message: str) -> RequestError:
    """The error for a field that requests something that the engine or this version cannot do."""
    return RequestError(
        grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED", f"{field} {message}", metadata={"field": field}
    )


def not_found(message: str, address: str) -> RequestError:
    """The error for a model that this server or the registry does not have."""
    return RequestError(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", message, metadata={"address": address})


def shutting_down() -> RequestError:
    """The error while the server shuts down; another one, or this one after a restart, may answer."""
    return RequestError(
        grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the server is shutting down: try again later", retry_after=1.0
    )


def ended_early() -> RequestError:
    """The error for an admitted request that is cut because the server shuts down and waits no longer."""
    return RequestError(
        grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the server ended this request early: try again", retry_after=1.0
    )


def request_error(error: Exception) -> RequestError:
    """The status for any exception. Unexpected ones go to the log, and the client does not see them."""
    if isinstance(error, RequestError):
        return error
    for kind, code, reason in _KINDS:
        if isinstance(error, kind):
            # The whole request is wrong: each of its fields was valid.
            metadata = {"field": "request"} if reason == "INVALID_FIELD" else {}
            return RequestError(code, reason, str(error), metadata=metadata)
    log.error("a request failed", exc_info=error)
    return RequestError(
        grpc.StatusCode.INTERNAL, "INTERNAL", f"internal error ({type(error).__name__}): see the server's log"
    )


def shorten(text: str, limit: int) -> str:
    """`text`, cut so that its UTF-8 has at most `limit` bytes."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"


def to_status(error: RequestError) -> grpc.Status:
    """The status that gRPC sends for `error`: code, message, and a google.rpc.Status in the trailing metadata."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: shorten(str(value), METADATA_BYTES) for key, value in error.metadata.items()},
    )
    details = [_packed(info)]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=error.code.value[0], message=shorten(str(error), MESSAGE_BYTES), details=details)
    return rpc_status.to_status(status)


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> Never:
    """End the call with the status of `error`."""
    status = to_status(request_error(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort() raises")
