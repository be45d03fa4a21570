"""Read a request's bytes into checked fields of a JSON object. Ambiguous JSON is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Never

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelwright.core.api.wording import closest
from modelwright.grpc_server.gateway.errors import HttpError, bad, error_response, unsupported, wrong
from modelwright.grpc_server.rpc.codec import QUICK_BYTES

# OpenAI's requests nest seven levels deep.
MOST_LEVELS = 64
# Seconds in which a request has to arrive, and how much of a refused body is still read: otherwise a client that is
# still sending would lose the connection before it sees the answer.
PATIENCE = 60.0
_PARTING_BYTES = 64 * 1024 * 1024
_PARTING_SECONDS = 2.0

# Strings are skipped as a whole, an unfinished one up to the end of the text, so that the time is linear.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|[\[\]{}]|NaN|-?Infinity', re.DOTALL)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Read the JSON object of a request.

    Args:
        request: a request whose body has not been read.
        limit: maximum number of bytes.

    Raises:
        HttpError: it is too large (413), not JSON by its header (415), too slow (408), or not valid (400).
        ClientGoneError: the client disconnected before all of it arrived.
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
        message = f"the header Content-Type says{parameters}: expected UTF-8"
        raise HttpError(415, "wrong_content_type", message)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        message = f"the header Content-Encoding is {encoding!r}: send the body uncompressed"
        raise HttpError(415, "wrong_content_encoding", message, headers={"Accept-Encoding": "identity"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(f"has {length} bytes", limit)


def _too_large(what: str, limit: int) -> HttpError:
    message = f"the body {what}, but this server accepts at most {limit}: send less"
    return HttpError(413, "message_too_large", message, headers={"Connection": "close"})


async def _read(request: Request, limit: int) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for piece in request.stream():
                data += piece
                if len(data) > limit:
                    raise _too_large(f"has more than {limit} bytes", limit)
    except TimeoutError as error:
        message = f"the body did not arrive within {PATIENCE:g} s: send it faster"
        raise HttpError(408, "timeout", message, headers={"Connection": "close"}) from error
    return bytes(data)


class EarlyRefusal(Response):
    """An answer to a request whose body is not read: it is sent first, then some of the body is discarded."""

    def __init__(self, error: HttpError) -> None:
        super().__init__()
        self._response = error_response(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
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
        HttpError: it is not UTF-8, not JSON or not an object, or has a duplicate name, a number that is not valid JSON,
            more than `MOST_LEVELS` levels or half a surrogate pair (400).
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
            raise bad("malformed_message", f"the body is not JSON: {sign} is not a JSON number ({_place(text, token)})")
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign, 0)
        if level > MOST_LEVELS:
            where = _place(text, token)
            raise bad("malformed_message", f"the body nests more than {MOST_LEVELS} levels deep ({where})")


def _place(text: str, token: re.Match[str]) -> str:
    before = text[: token.start()]
    return f"line {before.count(chr(10)) + 1}, column {token.start() - before.rfind(chr(10))}"


def _refuse_constant(name: str) -> Never:
    raise bad("malformed_message", f"the body is not JSON: {name} is not a JSON number")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise bad("malformed_message", f"the body has the key {quoted(name)} twice in one object: keep one")
        values[name] = value
    return values


def _check_texts(value: Any, path: tuple[str | int, ...]) -> None:
    """Refuse half a surrogate pair, which is not a character and cannot be encoded."""
    if isinstance(value, str):
        if (half := re.search("[\ud800-\udfff]", value)) is not None:
            where = written(path) or "a name in the body"
            what = f"has half a surrogate pair (\\u{ord(half[0]):04x}) at character {half.start() + 1}"
            raise bad("malformed_message", f"{where} {what}: expected valid Unicode", param=written(path) or None)
    elif isinstance(value, dict):
        for name, part in value.items():
            _check_texts(name, ())
            _check_texts(part, (*path, name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _check_texts(part, (*path, number))


def written(path: Sequence[str | int]) -> str:
    """Format a place in a JSON value: `messages[0].content`."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return steps.removeprefix(".")


def quoted(name: str) -> str:
    """Quote a text for a message: short, and in ASCII."""
    return json.dumps(name if len(name) <= 60 else name[:59] + "…", ensure_ascii=True)


def kind_of(value: Any) -> str:
    """The type of a JSON value, in JSON's words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


_INT32 = 2**31 - 1
_INT64 = 2**63 - 1

Harmless = Callable[[Any], bool]


def anything(_value: Any) -> bool:
    """Accept any value: the caller's own note."""
    return True


def only(*values: Any) -> Harmless:
    """Accept one of a few values that change nothing."""
    # True == 1 in Python, but not in JSON.
    return lambda value: not isinstance(value, bool) and value in values


def false(value: Any) -> bool:
    """Accept false, which changes nothing."""
    return value is False


def switch(value: Any) -> bool:
    """Accept true or false; neither changes anything."""
    return isinstance(value, bool)


class Fields:
    """The fields of a JSON object. Each is removed as it is read, and `finish` refuses those that are left.

    `null` means that a field is not set, since clients send it for that.

    Args:
        values: the object.
        where: its place in the body, with a dot at the end, such as "messages[0]."; empty for the body itself.
    """

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, Mapping):
            raise wrong(where.rstrip("."), f"is {kind_of(values)}: expected an object")
        self._where = where
        self._left = {name: value for name, value in values.items() if value is not None}
        self._known: set[str] = set()

    def name(self, key: str) -> str:
        """The place of a field in the body."""
        return f"{self._where}{key}"

    def has(self, key: str) -> bool:
        """Whether the field is set and has not been read."""
        return key in self._left

    def value(self, key: str) -> Any:
        """Read a field of any type; None if it is not set."""
        self._known.add(key)
        return self._left.pop(key, None)

    def text(self, key: str) -> str | None:
        """Read a text.

        Raises:
            HttpError: it is something else.
        """
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value
        raise self._not(key, value, "a string")

    def required_text(self, key: str, what: str) -> str:
        """Read a required text; `what` describes it in the error.

        Raises:
            HttpError: it is missing.
        """
        text = self.text(key)
        if text is None:
            raise wrong(self.name(key), f"is missing: {what}")
        return text

    def boolean(self, key: str) -> bool:
        """Read true or false; false if it is not set.

        Raises:
            HttpError: it is something else.
        """
        value = self.value(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self._not(key, value, "true or false")

    def integer(self, key: str, *, most: int = _INT32) -> int | None:
        """Read an integer between -`most` and `most`.

        Raises:
            HttpError: it is something else.
        """
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._not(key, value, "an integer")
        if abs(value) > most:
            raise wrong(self.name(key), f"is {_short(value)}: expected an integer of at most {most}")
        return value

    def seed(self, key: str) -> int | None:
        """Read an integer of 64 bits."""
        return self.integer(key, most=_INT64)

    def number(self, key: str) -> float | None:
        """Read a number.

        Raises:
            HttpError: it is something else, or too large for a float.
        """
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._not(key, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise wrong(self.name(key), "is too large for a number")
        return number

    def texts(self, key: str) -> list[str]:
        """Read a text or an array of texts; empty if it is not set.

        Raises:
            HttpError: it is something else.
        """
        value = self.value(key)
        values = [value] if isinstance(value, str) else value
        if values is None:
            return []
        if not isinstance(values, list):
            raise self._not(key, value, "a string or an array of strings")
        for number, text in enumerate(values):
            if not isinstance(text, str):
                raise wrong(f"{self.name(key)}[{number}]", f"is {kind_of(text)}: expected a string")
        return values

    def harmless(self, known: Mapping[str, tuple[Harmless, str]]) -> None:
        """Remove fields that are accepted only with values that change nothing.

        Args:
            known: by name: the check of the value, and what to do instead of other values.

        Raises:
            HttpError: one of them has another value.
        """
        for key, (harmless, advice) in known.items():
            if self.has(key) and not harmless(self._left[key]):
                raise unsupported(self.name(key), f"is not supported by this server: {advice}")
            self.value(key)

    def finish(self) -> None:
        """Refuse fields that have not been read.

        Raises:
            HttpError: there is one.
        """
        for key in self._left:
            raise self._unknown(key, self._known)

    def _unknown(self, key: str, known: Collection[str]) -> HttpError:
        near = closest(key[:60], known)
        advice = f"did you mean {near}?" if near else "leave it out"
        # A very long name need not be repeated in the error.
        name = self.name(key) if key.isidentifier() and len(key) <= 60 else f"{self._where}{quoted(key)}"
        return bad("unknown_field", f"{name} is not a field that this server knows: {advice}", param=name)

    def _not(self, key: str, value: Any, expected: str) -> HttpError:
        return wrong(self.name(key), f"is {kind_of(value)}: expected {expected}")


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
