"""The errors that the clients raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ARGUMENTS = ("target", "token", "tls", "tls_ca", "insecure")


class ArgumentError(ValueError):
    """An invalid argument of a client.

    Args:
        words: the message, with placeholders such as `{tls_ca}` for the names of arguments.
        facts: values for the other placeholders.
    """

    def __init__(self, words: str, **facts: object) -> None:
        self._words = words
        self._facts = facts
        super().__init__(self.message_for({}))

    def message_for(self, names: Mapping[str, str]) -> str:
        """The message with other names for the arguments, such as `{"tls_ca": "--tls-ca"}`."""
        arguments = {argument: names.get(argument, argument) for argument in _ARGUMENTS}
        return self._words.format(**arguments, **self._facts)


class ServerError(Exception):
    """A request that got an error; `__cause__` is the `grpc.RpcError`.

    Attributes:
        code: the name of the gRPC status code, such as "NOT_FOUND".
        message: one clear line.
        reason: a name of the proto's ErrorReason, such as "MODEL_NOT_FOUND". None if the error is not the
            server's, or the package googleapis-common-protos is not installed.
        metadata: the facts of the error, such as {"field": "prompt"}; empty if `reason` is None.
        retry_after: seconds after which a retry may succeed; None if the server does not say.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after


def server_error(error: Any, target: str, *, answering: bool = False) -> ServerError:
    """Turn a `grpc.RpcError` into a ServerError.

    Args:
        error: what gRPC raised.
        target: the server's address.
        answering: whether part of the answer had arrived.
    """
    code = error.code().name
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if details is None:
        return ServerError(code, _without_status(code, error.details() or code, target, answering=answering))
    reason, metadata, retry_after = _details(details)
    return ServerError(code, error.details() or code, reason=reason, metadata=metadata, retry_after=retry_after)


def ended_without_end(target: str) -> ServerError:
    """The error for a stream that ended without its last event."""
    return ServerError("INTERNAL", f"the server at {target} ended the stream without its last event")


# Errors of gRPC itself: code ("" is any), a word of its details, and our message. The first match counts.
_WORDS = (
    ("UNAVAILABLE", "tcp handshaker", "no server answers at {}"),
    (
        "UNAVAILABLE",
        "handshake",
        "cannot connect to {} with TLS: does the server use TLS, and is its certificate trusted?",
    ),
    ("UNAVAILABLE", "socket closed", "the program at {} closed the connection: does it require TLS?"),
    ("UNAVAILABLE", "failed parsing http/2", "the program at {} does not speak gRPC: check the port"),
    ("UNAVAILABLE", "before receiving settings", "the program at {} does not respond: is it a Modelwright server?"),
    ("", "received http2 header with status", "the program at {} speaks HTTP instead of gRPC: check the port"),
    (
        "UNIMPLEMENTED",
        "",
        "the program at {} does not know this request: is it a Modelwright server, and not its admin port?",
    ),
    ("UNAVAILABLE", "", "no server answers at {}"),
    ("DEADLINE_EXCEEDED", "", "the server at {} did not answer in time: set a longer timeout"),
    ("RESOURCE_EXHAUSTED", "larger than max", "the message is larger than the server at {} accepts: send less"),
)


def _without_status(code: str, details: str, target: str, *, answering: bool) -> str:
    if code == "UNAVAILABLE" and answering:
        return f"the server at {target} stopped in the middle of the answer ({details})"
    fitting = (words for kind, part, words in _WORDS if kind in ("", code) and part in details.lower())
    words = next(fitting, None)
    return details if words is None else f"{words.format(target)} ({details})"


def _details(data: bytes) -> tuple[str | None, dict[str, str], float | None]:
    try:
        from google.rpc import error_details_pb2, status_pb2
    except ImportError:
        # The classes of google.rpc are in googleapis-common-protos; without it, code and message have to do.
        return None, {}, None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status_pb2.Status.FromString(data).details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return info.reason or None, dict(info.metadata), retry_after
