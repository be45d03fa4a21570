"""Nested tables as one level of dotted keys, for people and for comparing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested tables and arrays of tables as `table.key` and `array[0].key`; other arrays stay whole."""
    if isinstance(value, Mapping) and (value or not key):
        return {
            name: found
            for inner, item in value.items()
            for name, found in flat(item, f"{key}.{inner}" if key else inner).items()
        }
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return {name: found for at, item in enumerate(value) for name, found in flat(item, f"{key}[{at}]").items()}
    return {key: value}
