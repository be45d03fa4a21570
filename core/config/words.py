"""The words of error messages: values and keys as TOML writes them, lists of choices, suggestions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any

from modelwright.core.api.wording import closest, either

KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST = 60
# Whole numbers below it are written as they are, not as 1e+16.
_EXACT = 10**15
# Longer integers are not written out; Python refuses to for some thousand digits.
_BITS = 128


def printable(text: str) -> str:
    """`text` on one line: what does not print is escaped as TOML escapes it."""
    return "".join(
        character if character.isprintable() else f"\\u{ord(character):04x}" if ord(character) < 0x10000
        else f"\\U{ord(character):08x}"
        for character in text
    )  # fmt: skip


def quoted(text: str) -> str:
    """`text` as a TOML string, whole."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def shown(value: Any) -> str:
    """A value as TOML writes it, shortened; tables and arrays by their kind."""
    if isinstance(value, str):
        return quoted(_short(value))
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, Sequence | set | frozenset):
        return "an array" if value else "an empty array"
    if value is None:
        value = "null"
    elif isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > _BITS:
        value = f"one of {value.bit_length()} bits"
    elif isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    elif isinstance(value, date | time):
        value = value.isoformat()
    return printable(_short(str(value)))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def dotted(path: KeyPath) -> str:
    """A key path as `--set` takes it; parts that are no bare keys are quoted."""
    return ".".join(part if _BARE.fullmatch(part) else quoted(part) for part in map(str, path))


def not_one_of(value: Any, allowed: Sequence[Any]) -> str:
    """The message for a value that is none of the allowed ones."""
    message = f"must be {either(map(shown, allowed))}, not {shown(value)}"
    if isinstance(value, str):
        close = closest(value, [choice for choice in allowed if isinstance(choice, str)])
        if close is not None:
            message += f", did you mean {shown(close)}?"
    return message
