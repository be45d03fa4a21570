"""`extends`: the files that a configuration stands on, lowest first."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Any

from attrs import field, frozen

from modelwright.core.config.documents import Document, read_document
from modelwright.core.config.errors import ConfigError, Invalid, Problem
from modelwright.core.config.layers import Origin, located
from modelwright.core.config.paths import Written, file_path
from modelwright.core.config.words import KeyPath, printable, shown

EXTENDS = "extends"
# More files on top of one another than anyone follows.
LONGEST = 16


@frozen(kw_only=True, eq=False)
class Layer:
    """One file of a chain: the document, and its values without `extends`, each string knowing the file's folder."""

    document: Document
    values: dict[str, Any]


def read_chain(path: Path, *, needs: str) -> tuple[Layer, ...]:
    """A file and all that it extends, lowest first; a file that is reached twice counts where it is reached first.

    Args:
        path: the file.
        needs: what an empty file lacks, in words.

    Raises:
        ConfigError: a file that cannot be read; or an `extends` that leads to none, or in a circle.
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
        """Note what `document` extends, then itself; `above` are the real paths from the first file to this one."""
        values: dict[str, Any] = Written.mark(document.values, document.folder)
        for key, written in self._written(values.pop(EXTENDS, []), document):
            self._follow(document, key, written, above)
        self.layers.append(Layer(document=document, values=values))

    def _written(self, value: Any, document: Document) -> list[tuple[KeyPath, Any]]:
        if isinstance(value, list):
            return [((EXTENDS, index), item) for index, item in enumerate(value)]
        if isinstance(value, str):
            return [((EXTENDS,), value)]
        self._wrong(document, (EXTENDS,), f"must be a file's name or an array of them, not {shown(value)}")
        return []

    def _follow(self, document: Document, key: KeyPath, written: Any, above: list[str]) -> None:
        if not isinstance(written, str):
            self._wrong(document, key, f"must be a file's name, not {shown(written)}")
            return
        try:
            path = Path(file_path(written))
        except Invalid as error:
            self._wrong(document, key, str(error))
            return
        real = os.path.realpath(path)
        if real in above:
            self._wrong(document, key, f"{shown(written)} extends this very file, directly or by others")
        elif len(above) >= LONGEST:
            self._wrong(document, key, f"more than {LONGEST} files extend one another")
        elif not os.path.exists(path):  # noqa: PTH110 - a name that is too long is no file
            self._wrong(document, key, f"there is no such file: {printable(str(path))}")
        elif path.is_dir():
            self._wrong(document, key, f"{printable(str(path))} is a folder: name a file")
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
    """What messages call a base: as seen from where the caller named the first file."""
    if written.startswith(("/", "~")):
        return str(path)
    return os.path.normpath(Path(document.name).parent / written)
