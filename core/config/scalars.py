"""Strings, numbers, truth values, dates and choices out of TOML, none of them taken for another."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from typing import Any

from modelwright.core.api.addresses import parse_address
from modelwright.core.api.errors import UsageError
from modelwright.core.config import metrics, paths, schema
from modelwright.core.config.errors import Invalid, fail
from modelwright.core.config.words import not_one_of, shown

Hook = Callable[[Any, Any], Any]

_INT64 = 2**63


def wrong(kind: str, value: Any) -> Invalid:
    """The error for a value of another type than `kind`, in words."""
    # The point of a float shows why 32.0 is no integer.
    return fail(f"must be {kind}, not {value if isinstance(value, float) else shown(value)}")


def boolean(value: Any, _: Any = None) -> bool:
    """True or false and nothing that Python takes for them."""
    if not isinstance(value, bool):
        raise wrong("true or false", value)
    return value


def integer(value: Any, _: Any = None) -> int:
    """A whole number of 64 bits, as TOML promises; true is none, nor is 1.0."""
    if type(value) is not int:
        raise wrong("an integer", value)
    if not -_INT64 <= value < _INT64:
        raise wrong("an integer of 64 bits", value)
    return value


def number(value: Any, _: Any = None) -> float:
    """A finite number; an integer is one too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong("a number", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong("a finite number", value)
    return float(integer(value) if isinstance(value, int) else value)


def string(value: Any, _: Any = None) -> str:
    """A string, without the folder that it was written in."""
    if not isinstance(value, str):
        raise wrong("a string", value)
    return str(value)


def _address(value: Any, _: Any) -> str:
    """A model's address, by its form: whether it leads anywhere is the registry's to say."""
    text = string(value)
    try:
        parse_address(text)
    except UsageError as error:
        raise fail(str(error)) from None
    return text


def _resolved(resolve: Callable[[str], str]) -> Hook:
    """A string whose folder matters."""

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
    """TOML's own dates and times, and the strings that they become in JSON."""

    def hook(value: Any, _: Any) -> Any:
        if type(value) is kind:
            return value
        try:
            return kind.fromisoformat(value)
        except (TypeError, ValueError):
            raise wrong(name, value) from None

    return hook


def chosen(value: Any, allowed: Sequence[Any]) -> Any:
    """The one of `allowed` that `value` is; 0 is no false, and 1.0 no 1, though Python has them equal."""
    for choice in allowed:
        alike = isinstance(value, str) if isinstance(choice, str) else type(value) is type(choice)
        if alike and value == choice:
            return choice
    raise fail(not_one_of(value, allowed))


# By class, as singledispatch finds them; a NewType is found by identity.
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
    schema.ModelAddress: _address,
    schema.FilePath: _resolved(paths.file_path),
    schema.ModelSource: _resolved(paths.model_source),
    schema.ChatTemplate: _resolved(paths.chat_template),
    schema.RegistryUrl: _resolved(paths.registry_url),
    metrics.MetricLabel: metrics.metric_label,
}
