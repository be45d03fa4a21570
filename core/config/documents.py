"""A configuration file as it is on disk: its values, and on the error path the line of each key.

Which syntax it is written in, TOML or YAML, is nobody's business but this module's.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from modelwright.core.config.errors import ConfigError, Problem
from modelwright.core.config.words import KeyPath, printable

# Deeper than anything sensible, and shallow enough for code that descends by calling itself.
DEEPEST = 64
# Bytes; whoever names a larger file has mistaken some data for a configuration.
LARGEST = 2**20


@frozen(kw_only=True)
class Syntax:
    """How a file is written.

    Attributes:
        name: for messages.
        parse: a text's values.
        lines: the line, from 1, of each key path in a valid file; imported when a line is asked for.
    """

    name: str
    parse: str
    lines: str

    def __call__(self, function: str, text: str) -> Any:
        """Call `module:function`, imported now."""
        module, _, name = function.partition(":")
        made: Callable[[str], Any] = getattr(importlib.import_module(f"modelwright.core.config.{module}"), name)
        return made(text)


TOML = Syntax(name="TOML", parse="toml_values:parse", lines="positions:lines")
YAML = Syntax(name="YAML", parse="yaml_values:parse", lines="yaml_values:lines")
SYNTAXES: Mapping[str, Syntax] = {".yaml": YAML, ".yml": YAML}


class NotValidError(Exception):
    """A text is not what its syntax says; `line` and `column` count from 1 where they are known."""

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line, self.column = line, column


@frozen(kw_only=True, eq=False)
class Document:
    """A configuration file.

    Attributes:
        name: as the caller named it, for messages.
        folder: the absolute one that its relative paths start from.
        text: what is in it.
        syntax: how.
        values: what it says.
    """

    name: str
    folder: Path
    text: str = field(repr=False)
    syntax: Syntax
    values: Mapping[str, Any]

    @functools.cached_property
    def lines(self) -> Mapping[KeyPath, int]:
        """The line of each key, table and array entry, from 1."""
        lines: Mapping[KeyPath, int] = self.syntax(self.syntax.lines, self.text)
        return lines

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest thing around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_document(path: Path, *, name: str | None = None, needs: str) -> Document:
    """Read a configuration file, TOML or, by its suffix, YAML.

    Args:
        path: the file.
        name: what messages call it; default: the path.
        needs: what an empty file lacks, in words.

    Raises:
        ConfigError: it is not there, no readable UTF-8 file, or not what its suffix says; one line says which and
            where.
    """
    name = printable(str(path) if name is None else name)
    syntax = SYNTAXES.get(path.suffix.lower(), TOML)
    content = _content(path, name, syntax)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise _refused(name, message, line=line) from None
    if text.startswith("\ufeff"):
        raise _refused(name, "it begins with a byte order mark: save the file as UTF-8 without one", line=1)
    values = _values(text, name, syntax) if text.strip() else None
    if values is None:
        raise _refused(name, f"the file is empty: {needs}", line=1)
    return Document(name=name, folder=path.absolute().parent, text=text, syntax=syntax, values=values)


def _content(path: Path, name: str, syntax: Syntax) -> bytes:
    try:
        if path.is_dir():
            raise _refused(name, f"this is a folder: name the {syntax.name} file")
        if path.exists() and not path.is_file():
            raise _refused(name, f"this is no ordinary file: name a {syntax.name} file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise _refused(name, "there is no such file") from None
    except (OSError, ValueError) as error:
        raise _refused(name, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > LARGEST:
        raise _refused(name, f"the file is larger than {LARGEST // 2**20} MiB: this is no configuration")
    return content


def _values(text: str, name: str, syntax: Syntax) -> Mapping[str, Any] | None:
    try:
        values: Mapping[str, Any] | None = syntax(syntax.parse, text)
    except NotValidError as error:
        raise _refused(name, str(error), line=error.line, column=error.column) from None
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


def _refused(name: str, message: str, *, line: int | None = None, column: int | None = None) -> ConfigError:
    return ConfigError([Problem(source=name, line=line, column=column, message=printable(message))])
