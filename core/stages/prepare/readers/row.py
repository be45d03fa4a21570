"""One raw row, as every reader gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from attrs import frozen

# Told of a file's columns and their types ("" where a kind of file has none), once, if the file has a schema.
Columns = Callable[[Mapping[str, str]], None]

# Deeper values end other readers (and writers) of JSON; no training example nests so deep.
MAX_DEPTH = 100

SHOWN = 2000  # characters of an unreadable row that are kept for `rejected.jsonl`


class RawRow(Protocol):
    """A row that may still be as it stood in its file, for whoever is to read it.

    Attributes:
        file: as `Row`'s.
        line: as `Row`'s.
        size: about how many bytes it takes.
    """

    @property
    def file(self) -> str: ...  # noqa: D102 - see above

    @property
    def line(self) -> int: ...  # noqa: D102 - see above

    @property
    def size(self) -> int: ...  # noqa: D102 - see above

    def read(self) -> Row:
        """The row."""
        ...


@frozen(kw_only=True)
class Row:
    """One raw row, or what is wrong with it.

    Attributes:
        file: the file's name, or the built-in source's.
        line: from 1. In JSONL the line; in CSV the line that the row begins on; in a .json array and in Parquet the
            number of the row.
        value: the row; None where it cannot be read.
        reason: why it cannot.
        text: what stood there, for `rejected.jsonl`; at most 2,000 characters of an unreadable line.
    """

    file: str
    line: int
    value: Mapping[str, Any] | None
    reason: str = ""
    text: str = ""

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(repr(self.value)) + len(self.text)

    def read(self) -> Self:
        """See `RawRow`: it is read."""
        return self


def too_deep(value: Any) -> bool:
    """Whether a JSON value nests deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for parent in level for item in _items(parent)]
        if not level:
            return False
    return True


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def shown_path(path: Path) -> str:
    """A path for a message of one line: as it is, or quoted where it holds line ends or other unprintable signs."""
    return str(path) if str(path).isprintable() else repr(str(path))


def row_file(path: Path) -> str:
    """What `Row.file` says of a file: its name."""
    return path.name if path.name.isprintable() else repr(path.name)
