"""What a TOML text says."""

from __future__ import annotations

import re
from typing import Any

import tomli

from modelwright.core.config.documents import DEEPEST, NotValidError, deeper_than
from modelwright.core.config.words import shown

_DUPLICATE = re.compile(r"Cannot overwrite a value|Cannot declare .* twice|Cannot mutate immutable namespace .*")
_TOO_DEEP = f"tables and arrays are nested more than {DEEPEST} deep"


def parse(text: str) -> dict[str, Any]:
    """The values of a document.

    Raises:
        NotValidError: it is no TOML.
    """
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        message = getattr(error, "msg", str(error))
        if _DUPLICATE.fullmatch(message):
            message = "this key or table was given before"
        # At the end of a file without a last newline, tomli may name the line after it.
        line = min(getattr(error, "lineno", 1), text.count("\n") + 1)
        raise NotValidError(f"not valid TOML: {message}", line=line, column=getattr(error, "colno", None)) from None
    except (RecursionError, ValueError) as error:
        raise NotValidError(f"cannot be read as TOML: {error}") from None
    if deeper_than(values, DEEPEST):
        raise NotValidError(_TOO_DEEP)
    return values


def parse_value(text: str) -> Any:
    """A TOML value on its own.

    Raises:
        ValueError: it is none; the message says why.
    """
    try:
        values = tomli.loads(f"value = {text}")
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if set(values) != {"value"}:
        raise ValueError(f"{shown(text)} is more than one value")
    if deeper_than(values, DEEPEST):
        raise ValueError(_TOO_DEEP)
    return values["value"]
