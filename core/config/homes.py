"""Which table of a file a key belongs in, for keys that stand in the wrong one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, get_args, get_origin

from attrs import fields, has, resolve_types

from modelwright.core.config.schema import RunConfig

_TOP = "the file's top"
# The class of the file that is being read. Classes are structured far below whoever knows what they are part of.
_root: ContextVar[Any] = ContextVar("root", default=RunConfig)


@contextlib.contextmanager
def within(root: type[object]) -> Iterator[None]:
    """While the block runs, `home_of` tells of the tables of `root`."""
    token = _root.set(root)
    try:
        yield
    finally:
        _root.reset(token)


@functools.cache
def _homes(root: type[object]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {"extends": [_TOP]} | ({"variants": [_TOP]} if root is RunConfig else {})

    def visit(cls: type[Any], header: str) -> None:
        for attribute in fields(resolve_types(cls)):
            key = str(attribute.metadata.get("key", attribute.name))
            homes.setdefault(key, []).append(header or _TOP)
            table, many = _table(attribute.type)
            if table is not None:
                inner = f"{header.strip('[]')}.{key}".lstrip(".")
                visit(table, f"[[{inner}]]" if many else f"[{inner}]")

    visit(root, "")
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
    homes = _homes(_root.get()).get(key, [])
    return homes[0] if len(homes) == 1 else None
