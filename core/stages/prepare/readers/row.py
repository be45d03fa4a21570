"""A raw row, as every reader returns it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from attrs import frozen

# Called once with the columns of a file and their types ("" if the file type has none), if the file has a schema.
Columns = Callable[[Mapping[str, str]], None]

# Other readers and writers of JSON fail on deeper values; no training example nests that deep.
MAX_DEPTH = 100

SHOWN = 2000  # characters kept of an unreadable row, for `rejected.jsonl`


class RawRow(Protocol):
    """A row that may not be parsed yet.

    Attributes:
        file: as `Row`'s.
        line: as `Row`'s.
        size: its approximate number of bytes.
    """

    @property
    def file(self) -> str: ...  # noqa: D102 - see above

    @property
    def line(self) -> int: ...  # noqa: D102 - see above

    @property
    def size(self) -> int: ...  # noqa: D102 - see above

    def read(self) -> Row:
        """Parse the row."""
        ...


@frozen(kw_only=True)
class Row:
    """A raw row, or what is wrong with it.

    Attributes:
        file: the file's name, the built-in source's, or NAME/CONFIG/SPLIT of a data set.
        line: from 1. In JSONL the line; in CSV the line on which the row begins; in a .json array, in Parquet and in
            a data set the number of the row.
        value: the row; None if it cannot be read.
        reason: why it cannot.
        text: the text of an unreadable row, for `rejected.jsonl`; at most 2,000 characters.
    """

    file: str
    line: int
    value: Mapping[str, Any] | None
    reason: str = ""
    text: str = ""

    @property
    def size(self) -> int:
        """The approximate number of bytes."""
        return len(repr(self.value)) + len(self.text)

    def read(self) -> Self:
        """See `RawRow`; this row is parsed."""
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
    """A path for a message of one line: quoted if it contains line ends or other unprintable characters."""
    return str(path) if str(path).isprintable() else repr(str(path))


def row_file(path: Path) -> str:
    """The value of `Row.file`: the name of the file."""
    return path.name if path.name.isprintable() else repr(path.name)
