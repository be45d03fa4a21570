"""Configuration files as they are on disk: their values, the line of each key, and the files that they extend.

Only this module knows which syntax a file is written in, TOML or YAML.
"""

from __future__ import annotations

import functools
import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli
from attrs import field, frozen

from modelwright.core.api.wording import printable
from modelwright.core.config.errors import (
    DEEPEST,
    TOO_DEEP,
    ConfigError,
    Invalid,
    KeyPath,
    NotValidError,
    Problem,
    dotted,
    shown,
)
from modelwright.core.config.paths import Written, file_path

SET = "--set"
Syntax = Literal["TOML", "YAML"]
SYNTAXES: Mapping[str, Syntax] = {".yaml": "YAML", ".yml": "YAML"}
_DUPLICATE = re.compile(r"Cannot overwrite a value|Cannot declare .* twice|Cannot mutate immutable namespace .*")
# Bytes. A larger file is data that was mistaken for a configuration.
LARGEST = 2**20


@frozen(kw_only=True, eq=False)
class Document:
    """A configuration file.

    Attributes:
        name: as the caller named it, for messages.
        folder: the absolute folder that its relative paths start from.
        text: its content.
        syntax: TOML or YAML.
        values: its values.
    """

    name: str
    folder: Path
    text: str = field(repr=False)
    syntax: Syntax
    values: Mapping[str, Any]

    @functools.cached_property
    def lines(self) -> Mapping[KeyPath, int]:
        """The line of each key, table and array entry, from 1."""
        if self.syntax == "YAML":
            from modelwright.core.config.yaml_files import lines
        else:
            from modelwright.core.config.toml_lines import lines
        return lines(self.text)

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest table or array around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_document(path: Path, *, name: str | None = None, needs: str) -> Document:
    """Read a configuration file, TOML or, by its suffix, YAML.

    Args:
        path: the file.
        name: its name in messages; default: the path.
        needs: what an empty file lacks, for messages.

    Raises:
        ConfigError: it does not exist, is not a readable UTF-8 file, or is not valid in the syntax of its suffix.
    """
    name = printable(str(path) if name is None else name)
    syntax = SYNTAXES.get(path.suffix.lower(), "TOML")
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
            raise _refused(name, f"this is a folder: give the {syntax} file")
        if path.exists() and not path.is_file():
            raise _refused(name, f"this is not a regular file: give a {syntax} file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise _refused(name, "there is no such file") from None
    except (OSError, ValueError) as error:
        raise _refused(name, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > LARGEST:
        raise _refused(name, f"the file is larger than {LARGEST // 2**20} MiB: this is not a configuration")
    return content


def _values(text: str, name: str, syntax: Syntax) -> Mapping[str, Any] | None:
    try:
        if syntax == "YAML":
            from modelwright.core.config.yaml_files import parse

            return parse(text)
        return parse_toml(text)
    except NotValidError as error:
        raise _refused(name, str(error), line=error.line, column=error.column) from None


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a document.

    Raises:
        NotValidError: it is not TOML.
    """
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        message = getattr(error, "msg", str(error))
        if _DUPLICATE.fullmatch(message):
            message = "duplicate key or table: remove one"
        # At the end of a file without a last newline, tomli may name the line after it.
        line = min(getattr(error, "lineno", 1), text.count("\n") + 1)
        raise NotValidError(f"not valid TOML: {message}", line=line, column=getattr(error, "colno", None)) from None
    except (RecursionError, ValueError) as error:
        raise NotValidError(f"cannot be read as TOML: {error}") from None
    if deeper_than(values, DEEPEST):
        raise NotValidError(TOO_DEEP)
    return values


def deeper_than(value: Any, levels: int) -> bool:
    """Whether tables and arrays are nested more than `levels` deep; measured level by level, without recursion."""
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


@frozen(kw_only=True)
class Origin:
    """Where a key was given: its path in a file, or in a `--set` (there is no document then)."""

    document: Document | None
    path: KeyPath


def located(origin: Origin, beyond: KeyPath, message: str) -> Problem:
    """A problem at `origin`, or at a path `beyond` it that is not there."""
    path, document = (*origin.path, *beyond), origin.document
    if document is None:
        return Problem(source=SET, key=dotted(path), message=message)
    table = path
    while table and isinstance(table[-1], int):
        table = table[:-1]
    table = table[:-1]
    return Problem(
        source=document.name,
        line=document.line(origin.path),
        table=dotted(table),
        key=dotted(path[len(table) :]),
        message=message,
    )


EXTENDS = "extends"
# More files in a chain than a reader can follow.
LONGEST = 16


@frozen(kw_only=True, eq=False)
class Layer:
    """One file of a chain: the document, and its values without `extends`, each string knowing the file's folder."""

    document: Document
    values: dict[str, Any]


def read_chain(path: Path, *, needs: str) -> tuple[Layer, ...]:
    """A file and everything that it extends, lowest layer first. A file that is reached twice counts the first time.

    Args:
        path: the file.
        needs: what an empty file lacks, for messages.

    Raises:
        ConfigError: a file cannot be read; or an `extends` leads nowhere, or in a circle.
    """
    chain = _Chain()
    document = read_document(path, needs=needs)
    chain.read(document, [os.path.realpath(path)])
    if chain.problems:
        raise ConfigError(list(dict.fromkeys(chain.problems)))
    return tuple(chain.layers)


@frozen(kw_only=True)
class _Chain:
    layers: list[Layer] = field(factory=list)
    seen: set[str] = field(factory=set)
    problems: list[Problem] = field(factory=list)

    def read(self, document: Document, above: list[str]) -> None:
        """Add what `document` extends, then `document`; `above` are the real paths from the first file to this one."""
        values: dict[str, Any] = Written.mark(document.values, document.folder)
        for key, written in self._written(values.pop(EXTENDS, []), document):
            self._follow(document, key, written, above)
        self.layers.append(Layer(document=document, values=values))

    def _written(self, value: Any, document: Document) -> list[tuple[KeyPath, Any]]:
        if isinstance(value, list):
            return [((EXTENDS, index), item) for index, item in enumerate(value)]
        if isinstance(value, str):
            return [((EXTENDS,), value)]
        self._wrong(document, (EXTENDS,), f"must be a path or an array of paths, not {shown(value)}")
        return []

    def _follow(self, document: Document, key: KeyPath, written: Any, above: list[str]) -> None:
        if not isinstance(written, str):
            self._wrong(document, key, f"must be a path, not {shown(written)}")
            return
        try:
            path = Path(file_path(written))
        except Invalid as error:
            self._wrong(document, key, str(error))
            return
        real = os.path.realpath(path)
        if real in above:
            self._wrong(document, key, f"{shown(written)} leads back to this file: remove it")
        elif len(above) >= LONGEST:
            self._wrong(document, key, f"the chain of extends is longer than {LONGEST} files")
        elif not os.path.exists(path):  # noqa: PTH110 - false for a name that is too long
            self._wrong(document, key, f"there is no such file: {printable(str(path))}")
        elif path.is_dir():
            self._wrong(document, key, f"{printable(str(path))} is a folder: give a file")
        elif real not in self.seen:
            self.seen.add(real)
            self._read_base(path, _name(document, written, path), [*above, real])

    def _read_base(self, path: Path, name: str, above: list[str]) -> None:
        try:
            base = read_document(path, name=name, needs="remove it from extends")
        except ConfigError as error:
            self.problems.extend(error.problems)
            return
        self.read(base, above)

    def _wrong(self, document: Document, key: KeyPath, message: str) -> None:
        self.problems.append(located(Origin(document=document, path=key), (), message))


def _name(document: Document, written: str, path: Path) -> str:
    """The name of a base in messages: relative to where the caller named the first file from."""
    if written.startswith(("/", "~")):
        return str(path)
    return os.path.normpath(Path(document.name).parent / written)


def parse_value(text: str) -> Any:
    """A TOML value on its own.

    Raises:
        ValueError: it is not a TOML value; the message says why.
    """
    try:
        values = tomli.loads(f"value = {text}")
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if set(values) != {"value"}:
        raise ValueError(f"{shown(text)} is more than one value")
    if deeper_than(values, DEEPEST):
        raise ValueError(TOO_DEEP)
    return values["value"]
