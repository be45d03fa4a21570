"""Turn errors into HTTP answers: the status, OpenAI's error object, and headers that say when to retry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import grpc
from starlette.responses import JSONResponse

from modelwright.grpc_server.errors import MESSAGE_BYTES, RequestError, request_error, shorten

_Status = grpc.StatusCode

# Status, and OpenAI's `type`.
_STATUS: dict[grpc.StatusCode, tuple[int, str]] = {
    _Status.INVALID_ARGUMENT: (400, "invalid_request_error"),
    _Status.UNAUTHENTICATED: (401, "authentication_error"),
    _Status.PERMISSION_DENIED: (403, "permission_error"),
    _Status.NOT_FOUND: (404, "invalid_request_error"),
    _Status.ALREADY_EXISTS: (409, "invalid_request_error"),
    _Status.FAILED_PRECONDITION: (409, "conflict_error"),
    _Status.ABORTED: (412, "conflict_error"),
    _Status.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    _Status.UNIMPLEMENTED: (501, "server_error"),
    _Status.UNAVAILABLE: (503, "server_error"),
}
_INTERNAL = (500, "server_error")

# Reasons for which OpenAI has its own code; other codes are the reason in lower case.
_CODES = {
    "CONTEXT_EXCEEDED": "context_length_exceeded",
    "MODEL_NOT_FOUND": "model_not_found",
    "UNAUTHENTICATED": "invalid_api_key",
}


class HttpError(Exception):
    """A request that is refused because of HTTP itself: its path, method, headers or body.

    Attributes:
        status: the HTTP status.
        code: a word for programs.
        param: the wrong field; None if it is not a field.
        headers: additional headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def bad(code: str, message: str, *, param: str | None = None) -> HttpError:
    """The error 400 for an invalid body."""
    return HttpError(400, code, message, param=param)


def wrong(param: str, message: str) -> HttpError:
    """The error for a field with an invalid value; the message continues the field's name."""
    return bad("invalid_field", f"{param} {message}", param=param)


def unsupported(param: str, message: str) -> HttpError:
    """The error for a field that requests something unsupported; the message continues the field's name."""
    return bad("unsupported", f"{param} {message}", param=param)


def http_error(error: Exception, names: Mapping[str, str] | None = None) -> HttpError:
    """Turn any exception into an HTTP error. Unexpected ones go to the log, and the client does not see them.

    Args:
        error: what was raised.
        names: the request's names of fields that have other names in the protocol.
    """
    if isinstance(error, HttpError):
        return error
    status_error = request_error(error)
    param, message = status_error.metadata.get("field"), status_error.message
    if message.startswith("sampling."):
        # In this API the fields of the protocol's Sampling are at the top level.
        field = message.removeprefix("sampling.").partition(" ")[0]
        name = (names or {}).get(field, field)
        message, param = name + message.removeprefix(f"sampling.{field}"), name
    if status_error.reason == "MODEL_NOT_FOUND":
        param = "model"
    status, _ = _STATUS.get(status_error.code, _INTERNAL)
    return HttpError(
        413 if status_error.reason == "MESSAGE_TOO_LARGE" else status,
        _CODES.get(status_error.reason, status_error.reason.lower()),
        message,
        param=None if param is None else str(param),
        headers=_headers(status_error),
    )


def _headers(status_error: RequestError) -> dict[str, str]:
    headers = {}
    if status_error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(status_error.retry_after)))
    if status_error.code is _Status.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def error_object(error: HttpError) -> dict[str, Any]:
    """Make OpenAI's error object."""
    # A message may quote a long text of the request.
    message = shorten(str(error), MESSAGE_BYTES)
    kinds = {status: kind for status, kind in [*_STATUS.values(), _INTERNAL]}  # noqa: C416 - the last of a status wins
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: HttpError) -> JSONResponse:
    """The answer to a refused request."""
    return JSONResponse(error_object(error), status_code=error.status, headers=error.headers)
