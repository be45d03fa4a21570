"""A run.toml as it is on disk: its values, and on the error path the line of each key."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli
from attrs import field, frozen

from modelwright.core.config.errors import ConfigError, Problem
from modelwright.core.config.words import KeyPath, printable, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

# Deeper than anything sensible, and shallow enough for code that descends by calling itself.
DEEPEST = 64

_DUPLICATE = re.compile(r"Cannot overwrite a value|Cannot declare .* twice|Cannot mutate immutable namespace .*")


@frozen(kw_only=True)
class Document:
    """A TOML file.

    Attributes:
        name: as the caller named it, for messages.
        folder: the absolute one that its relative paths start from.
        content: its bytes.
        values: what it says.
    """

    name: str
    folder: Path
    content: bytes = field(repr=False)
    values: Mapping[str, Any]

    @functools.cached_property
    def lines(self) -> Mapping[KeyPath, int]:
        """The line of each key, table and array entry, from 1."""
        from modelwright.core.config.positions import lines

        return lines(self.content)

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest thing around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_document(path: Path) -> Document:
    """Read a TOML file.

    Raises:
        ConfigError: it is not there, no readable UTF-8 file, or no TOML; one line says which and where.
    """
    name = printable(str(path))
    content = _content(path, name)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise _refused(name, message, line=line) from None
    if text.startswith("\ufeff"):
        raise _refused(name, "it begins with a byte order mark: save the file as UTF-8 without one", line=1)
    if not text.strip():
        raise _refused(name, "the file is empty: it needs name, [model], [data] and [train]", line=1)
    return Document(name=name, folder=path.absolute().parent, content=content, values=_parsed(text, name))


def _content(path: Path, name: str) -> bytes:
    if path.suffix in {".yaml", ".yml"}:
        raise _refused(name, "YAML is not supported by this version: write the same keys as TOML")
    try:
        if path.is_dir():
            raise _refused(name, "this is a folder: name the TOML file")
        if path.exists() and not path.is_file():
            raise _refused(name, "this is no ordinary file: name a TOML file")
        return path.read_bytes()
    except FileNotFoundError:
        raise _refused(name, "there is no such file") from None
    except (OSError, ValueError) as error:
        raise _refused(name, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        message = getattr(error, "msg", str(error))
        if _DUPLICATE.fullmatch(message):
            message = "this key or table was given before"
        # At the end of a file without a last newline, tomli may name the line after it.
        line = min(getattr(error, "lineno", 1), text.count("\n") + 1)
        raise _refused(name, f"not valid TOML: {message}", line=line, column=getattr(error, "colno", None)) from None
    except (RecursionError, ValueError) as error:
        raise _refused(name, f"cannot be read as TOML: {error}") from None
    if deeper_than(values, DEEPEST):
        raise _refused(name, f"tables and arrays are nested more than {DEEPEST} deep")
    return values


def deeper_than(value: Any, levels: int) -> bool:
    """Whether tables and arrays are nested more than `levels` deep; measured level by level, not by recursion."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True


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
        raise ValueError(f"tables and arrays are nested more than {DEEPEST} deep")
    return values["value"]


def _refused(name: str, message: str, *, line: int | None = None, column: int | None = None) -> ConfigError:
    return ConfigError([Problem(source=name, line=line, column=column, message=printable(message))])
