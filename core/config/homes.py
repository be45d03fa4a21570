"""Which table of a run.toml a key belongs in, for keys that stand in the wrong one."""

from __future__ import annotations

import functools
from typing import Any, get_args, get_origin

from attrs import fields, has, resolve_types

from modelwright.core.config.schema import RunConfig


@functools.cache
def _homes() -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}

    def visit(cls: type[Any], header: str) -> None:
        for attribute in fields(resolve_types(cls)):
            key = str(attribute.metadata.get("key", attribute.name))
            homes.setdefault(key, []).append(header or "the file's top")
            table, many = _table(attribute.type)
            if table is not None:
                inner = f"{header.strip('[]')}.{key}".lstrip(".")
                visit(table, f"[[{inner}]]" if many else f"[{inner}]")

    visit(RunConfig, "")
    return homes


def _table(kind: Any) -> tuple[type[Any] | None, bool]:
    """The class of a table and whether it stands in an array, for a field's type."""
    if isinstance(kind, type) and has(kind):
        return kind, False
    for argument in get_args(kind):
        if isinstance(argument, type) and has(argument):
            return argument, get_origin(kind) is tuple
    return None, False


def home_of(key: str) -> str | None:
    """The header of the one table that has `key`, None where none or several have."""
    homes = _homes().get(key, [])
    return homes[0] if len(homes) == 1 else None
