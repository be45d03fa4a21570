"""Readers of data files: one for each file type, chosen by the suffix."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.stages.prepare.readers.columnar import arrow_rows, parquet_rows, saved_dataset
from modelwright.core.stages.prepare.readers.csv_files import csv_rows
from modelwright.core.stages.prepare.readers.json_files import json_rows, jsonl_rows
from modelwright.core.stages.prepare.readers.row import Columns, RawRow, Row, row_file, shown_path
from modelwright.core.stages.prepare.readers.text import PACKINGS, Bytes, opened_text

__all__ = [
    "READABLE",
    "Columns",
    "RawRow",
    "Row",
    "is_readable",
    "read_file",
    "row_file",
    "saved_dataset",
    "shown_path",
]

_TEXTS: dict[str, Callable[[Path, Bytes, Columns], Iterator[RawRow]]] = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
}
# These are compressed inside.
_COLUMNS: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {".parquet": parquet_rows, ".arrow": arrow_rows}

READABLE = f"{', '.join(_TEXTS)} (plain, {', '.join(filter(None, PACKINGS))}), {' and '.join(_COLUMNS)}"


@frozen
class _Kind:
    """What the name of a file says: `suffix` is its type, `packing` the compression suffix after it."""

    suffix: str
    packing: str = ""


_KINDS = {
    **{suffix: _Kind(suffix) for suffix in _COLUMNS},
    **{suffix + packing: _Kind(suffix, packing) for suffix in _TEXTS for packing in PACKINGS},
}


def _kind(file: Path) -> _Kind | None:
    name = file.name.lower()
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), None)


def is_readable(file: Path) -> bool:
    """Whether there is a reader for files with this name."""
    return _kind(file) is not None


def read_file(file: Path, columns: Columns) -> Iterator[RawRow]:
    """The rows of a readable file, in order. Memory does not grow with the file, except for a .json array.

    Args:
        file: its path.
        columns: called with the columns and their types before the first row, if the file has a schema.

    Raises:
        ModelwrightError: the content does not match the name, or is truncated; the message says how far it was read.
        MissingDependencyError: reading the file needs a package that is not installed.
    """
    kind = _kind(file)
    assert kind is not None
    count = 0
    for row in _rows(file, kind, columns):
        count += 1
        yield row
    if not count:
        raise ModelwrightError(f"{shown_path(file)}: the file has no rows")


def _rows(file: Path, kind: _Kind, columns: Columns) -> Iterator[RawRow]:
    if kind.suffix in _COLUMNS:
        yield from _COLUMNS[kind.suffix](file, columns)
        return
    line = 0
    try:
        with opened_text(file, kind.packing) as opened:
            for row in _TEXTS[kind.suffix](file, opened, columns):
                line = row.line
                yield row
    except (EOFError, zlib.error, OSError) as error:
        reached = f" after line {line}" if line else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelwrightError(f"{shown_path(file)}: cannot read{reached}: {reason}") from error
