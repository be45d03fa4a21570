"""Strings, numbers, booleans, dates and choices from TOML, never converted silently."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from typing import Any

from modelwright.core.api.addresses import parse_address
from modelwright.core.api.errors import UsageError
from modelwright.core.config import paths
from modelwright.core.config.errors import Invalid, fail, not_one_of, shown

Hook = Callable[[Any, Any], Any]

_INT64 = 2**63


def wrong(kind: str, value: Any) -> Invalid:
    """The error for a value that is not `kind`, a type in words."""
    # The decimal point shows why 32.0 is not an integer.
    return fail(f"must be {kind}, not {value if isinstance(value, float) else shown(value)}")


def boolean(value: Any, _: Any = None) -> bool:
    """True or false, not 1 or 0."""
    if not isinstance(value, bool):
        raise wrong("true or false", value)
    return value


def integer(value: Any, _: Any = None) -> int:
    """An integer of 64 bits, as TOML promises; neither true nor 1.0."""
    if type(value) is not int:
        raise wrong("an integer", value)
    if not -_INT64 <= value < _INT64:
        raise wrong("an integer of 64 bits", value)
    return value


def number(value: Any, _: Any = None) -> float:
    """A finite number; an integer becomes a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong("a number", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong("a finite number", value)
    return float(integer(value) if isinstance(value, int) else value)


def string(value: Any, _: Any = None) -> str:
    """A plain string, without the folder that it was written in."""
    if not isinstance(value, str):
        raise wrong("a string", value)
    return str(value)


def _address(value: Any, _: Any) -> str:
    """A model's address. Only its form is checked; the registry says whether the model exists."""
    text = string(value)
    try:
        parse_address(text)
    except UsageError as error:
        raise fail(str(error)) from None
    return text


def _resolved(resolve: Callable[[str], str]) -> Hook:
    """A hook for a string that resolves relative to the folder it was written in."""

    def hook(value: Any, _: Any) -> str:
        if not isinstance(value, str):
            raise wrong("a string", value)
        return resolve(value)

    return hook


def _path(value: Any, _: Any) -> pathlib.Path:
    """A plugin's own path option, resolved like any other."""
    if not isinstance(value, str):
        raise wrong("a string", value)
    return pathlib.Path(paths.file_path(value))


def _moment(kind: Any, name: str) -> Hook:
    """A hook for TOML's dates and times, and for the strings that they become in JSON."""

    def hook(value: Any, _: Any) -> Any:
        if type(value) is kind:
            return value
        try:
            return kind.fromisoformat(value)
        except (TypeError, ValueError):
            raise wrong(name, value) from None

    return hook


def chosen(value: Any, allowed: Sequence[Any]) -> Any:
    """The member of `allowed` that equals `value` and has its type: 0 is not false, and 1.0 is not 1."""
    for choice in allowed:
        alike = isinstance(value, str) if isinstance(choice, str) else type(value) is type(choice)
        if alike and value == choice:
            return choice
    raise fail(not_one_of(value, allowed))


# Hooks by class, found by singledispatch; those by NewType are found by identity.
BY_CLASS: dict[Any, Hook] = {
    bool: boolean,
    int: integer,
    float: number,
    str: string,
    datetime: _moment(datetime, "a date with a time"),
    date: _moment(date, "a date"),
    time: _moment(time, "a time"),
    pathlib.Path: _path,
}
BY_NAME: dict[Any, Hook] = {
    paths.ModelAddress: _address,
    paths.FilePath: _resolved(paths.file_path),
    paths.ModelSource: _resolved(paths.model_source),
    paths.ChatTemplate: _resolved(paths.chat_template),
    paths.RegistryUrl: _resolved(paths.registry_url),
}
