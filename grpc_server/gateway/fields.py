"""From a JSON object to checked values: a field is read, or known to change nothing, or refused by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from modelwright.grpc_server.gateway.body import kind_of, quoted
from modelwright.grpc_server.gateway.errors import HttpError, bad, unsupported, wrong

_INT32 = 2**31 - 1
_INT64 = 2**63 - 1

Harmless = Callable[[Any], bool]


def anything(_value: Any) -> bool:
    """A note of the caller's to itself, whatever it is."""
    return True


def only(*values: Any) -> Harmless:
    """One of a few values that change nothing."""
    # True == 1 in Python, and not in JSON.
    return lambda value: not isinstance(value, bool) and value in values


def false(value: Any) -> bool:
    """What is off changes nothing."""
    return value is False


def switch(value: Any) -> bool:
    """On or off: neither changes anything."""
    return isinstance(value, bool)


class Fields:
    """The fields of a JSON object; each is taken out as it is read, and `finish` refuses what is left.

    `null` is what a client sends for a field that it does not set: it is as good as absent.

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
        """A field's place in the body."""
        return f"{self._where}{key}"

    def has(self, key: str) -> bool:
        """Whether the field is set, and not read yet."""
        return key in self._left

    def value(self, key: str) -> Any:
        """A field as it is; None where it is not set."""
        self._known.add(key)
        return self._left.pop(key, None)

    def text(self, key: str) -> str | None:
        """A text.

        Raises:
            HttpError: it is none.
        """
        value = self.value(key)
        if value is None or isinstance(value, str):
            return value
        raise self._not(key, value, "a text")

    def required_text(self, key: str, what: str) -> str:
        """A text that must be there; `what` says what it is.

        Raises:
            HttpError: it is not.
        """
        text = self.text(key)
        if text is None:
            raise wrong(self.name(key), f"is missing: {what}")
        return text

    def boolean(self, key: str) -> bool:
        """True or false; false where it is not set.

        Raises:
            HttpError: it is neither.
        """
        value = self.value(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self._not(key, value, "true or false")

    def integer(self, key: str, *, most: int = _INT32) -> int | None:
        """A whole number, between -`most` and `most`.

        Raises:
            HttpError: it is none.
        """
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._not(key, value, "a whole number")
        if abs(value) > most:
            raise wrong(self.name(key), f"is {_short(value)}: expected a whole number of at most {most}")
        return value

    def seed(self, key: str) -> int | None:
        """A whole number of 64 bits."""
        return self.integer(key, most=_INT64)

    def number(self, key: str) -> float | None:
        """A number.

        Raises:
            HttpError: it is none, or larger than a number can be.
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
        """A text or an array of texts; empty where it is not set.

        Raises:
            HttpError: it is neither.
        """
        value = self.value(key)
        values = [value] if isinstance(value, str) else value
        if values is None:
            return []
        if not isinstance(values, list):
            raise self._not(key, value, "a text or an array of texts")
        for number, text in enumerate(values):
            if not isinstance(text, str):
                raise wrong(f"{self.name(key)}[{number}]", f"is {kind_of(text)}: expected a text")
        return values

    def harmless(self, known: Mapping[str, tuple[Harmless, str]]) -> None:
        """Take out fields that are accepted while they change nothing.

        Args:
            known: by name, what changes nothing, and what to do where it would.

        Raises:
            HttpError: one of them asks for something.
        """
        for key, (harmless, advice) in known.items():
            if self.has(key) and not harmless(self._left[key]):
                raise unsupported(self.name(key), f"is not supported by this server: {advice}")
            self.value(key)

    def finish(self) -> None:
        """Refuse what nobody has read.

        Raises:
            HttpError: there is such a field.
        """
        for key in self._left:
            raise self._unknown(key, self._known)

    def _unknown(self, key: str, known: Collection[str]) -> HttpError:
        near = difflib.get_close_matches(key[:60], known, n=1)
        advice = f"did you mean {near[0]}?" if near else "leave it out"
        # A name of many thousand characters need not come back.
        name = self.name(key) if key.isidentifier() and len(key) <= 60 else f"{self._where}{quoted(key)}"
        return bad("unknown_field", f"{name} is no field that this server knows: {advice}", param=name)

    def _not(self, key: str, value: Any, expected: str) -> HttpError:
        return wrong(self.name(key), f"is {kind_of(value)}: expected {expected}")


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
