"""From a request's bytes to a JSON object. What two readers could read differently is refused, with its place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Sequence
from typing import Any, Never

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelwright.grpc_server.gateway.errors import HttpError, bad, error_response
from modelwright.grpc_server.rpc.codec import QUICK_BYTES

# OpenAI's requests nest seven levels deep.
MOST_LEVELS = 64
# How long the bytes of a request may take, in seconds, and what is still read of a body that is refused: a client
# that is sending would otherwise lose the answer with the connection.
PATIENCE = 60.0
_PARTING_BYTES = 64 * 1024 * 1024
_PARTING_SECONDS = 2.0

# Strings are skipped whole, an unfinished one to the end of the text: each character is looked at once.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|[\[\]{}]|NaN|-?Infinity', re.DOTALL)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object that a request carries.

    Args:
        request: a request whose body nobody has read.
        limit: the most bytes that are taken.

    Raises:
        HttpError: it is too large (413), not JSON by its header (415), did not come in time (408), or is wrong (400).
        ClientGoneError: the client left before all of it came.
    """
    _check_headers(request, limit)
    data = await _read(request, limit)
    if len(data) <= QUICK_BYTES:
        return parse_object(data)
    return await asyncio.to_thread(parse_object, data)


def _check_headers(request: Request, limit: int) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        sent = f"is {kind.strip()!r}" if kind.strip() else "is missing"
        raise HttpError(415, "wrong_content_type", f"the header Content-Type {sent}: expected application/json")
    charset = re.fullmatch(r"\s*(?:charset=\"?utf-?8\"?)?\s*", parameters, re.IGNORECASE)
    if charset is None:
        message = f"the header Content-Type says{parameters}: JSON is sent in UTF-8"
        raise HttpError(415, "wrong_content_type", message)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        message = f"the header Content-Encoding is {encoding!r}: send the body as it is"
        raise HttpError(415, "wrong_content_encoding", message, headers={"Accept-Encoding": "identity"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(f"has {length} bytes", limit)


def _too_large(what: str, limit: int) -> HttpError:
    message = f"the body {what}, and this server takes {limit}: send less"
    return HttpError(413, "message_too_large", message, headers={"Connection": "close"})


async def _read(request: Request, limit: int) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for piece in request.stream():
                data += piece
                if len(data) > limit:
                    raise _too_large("has more bytes", limit)
    except TimeoutError as error:
        message = f"the body did not come within {PATIENCE:g} s"
        raise HttpError(408, "timeout", message, headers={"Connection": "close"}) from error
    return bytes(data)


class Parting(Response):
    """An answer to a request whose body is not read: it is sent first, then a while of the body is thrown away."""

    def __init__(self, error: HttpError) -> None:
        super().__init__()
        self._response = error_response(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        start = {"type": "http.response.start", "status": self._response.status_code}
        await send({**start, "headers": self._response.raw_headers})
        await send({"type": "http.response.body", "body": self._response.body, "more_body": True})
        waiting = any(name == b"expect" for name, _ in scope["headers"])
        if not waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PARTING_SECONDS):
                    await _throw_away(receive)
        await send({"type": "http.response.body", "body": b""})


async def _throw_away(receive: Receive) -> None:
    left = _PARTING_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return


def parse_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HttpError: it is not UTF-8, not JSON, not an object, has a name twice, a number that JSON does not have, more
            levels than `MOST_LEVELS`, or half a surrogate pair (400).
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: byte {error.start + 1} is 0x{data[error.start]:02x}"
        raise bad("malformed_message", message) from error
    if text.startswith("\ufeff"):
        raise bad("malformed_message", "the body begins with a byte order mark: leave it out")
    _check_tokens(text)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise bad("malformed_message", f"the body is not JSON: {error.msg} ({at})") from error
    except ValueError as error:  # an integer of thousands of digits
        raise bad("malformed_message", f"the body has a number that is too long: {error}") from error
    if not isinstance(value, dict):
        raise bad("malformed_message", f'the body is {kind_of(value)}: expected an object, such as {{"model": …}}')
    _check_texts(value, ())
    return value


def _check_tokens(text: str) -> None:
    level = 0
    for token in _TOKEN.finditer(text):
        sign = token[0]
        if sign in ("NaN", "Infinity", "-Infinity"):
            raise bad("malformed_message", f"the body is not JSON: {sign} is no number of it ({_place(text, token)})")
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign, 0)
        if level > MOST_LEVELS:
            where = _place(text, token)
            raise bad("malformed_message", f"the body nests more than {MOST_LEVELS} levels deep ({where})")


def _place(text: str, token: re.Match[str]) -> str:
    before = text[: token.start()]
    return f"line {before.count(chr(10)) + 1}, column {token.start() - before.rfind(chr(10))}"


def _refuse_constant(name: str) -> Never:
    raise bad("malformed_message", f"the body is not JSON: {name} is no number of it")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise bad("malformed_message", f"the body has {quoted(name)} twice in one object: say it once")
        values[name] = value
    return values


def _check_texts(value: Any, path: tuple[str | int, ...]) -> None:
    """Refuse half a surrogate pair: it is no character, and cannot be sent on."""
    if isinstance(value, str):
        if (half := re.search("[\ud800-\udfff]", value)) is not None:
            where = written(path) or "a name in the body"
            what = f"has half a surrogate pair (\\u{ord(half[0]):04x}) at character {half.start() + 1}"
            raise bad("malformed_message", f"{where} {what}: it is no text", param=written(path) or None)
    elif isinstance(value, dict):
        for name, part in value.items():
            _check_texts(name, ())
            _check_texts(part, (*path, name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _check_texts(part, (*path, number))


def written(path: Sequence[str | int]) -> str:
    """A place in a JSON value, as people write it: `messages[0].content`."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return steps.removeprefix(".")


def quoted(name: str) -> str:
    """A text as a message shows it: short, and in ASCII."""
    return json.dumps(name if len(name) <= 60 else name[:59] + "…", ensure_ascii=True)


def kind_of(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {dict: "an object", list: "an array", str: "a text", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
