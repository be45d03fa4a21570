"""Rows of Parquet files, a batch at a time, as plain JSON values."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.prepare.readers.packing import pyarrow_module
from modelwright.core.prepare.readers.row import SHOWN, Columns, Row, row_file, shown_path

ROWS_IN_BATCH = 256
BUFFER = 2**20  # bytes that are read ahead of each column, instead of a whole row group


class _NotPlainError(Exception):
    """A value has no counterpart in JSON."""


def parquet_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a Parquet file. Row groups are streamed, so that memory grows with neither them nor the file.

    Times become ISO 8601 texts, decimals and UUIDs texts, maps objects, binary values texts where they are UTF-8.

    Raises:
        ModelwrightError: it is no Parquet file, or is cut short.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet = pyarrow_module(file, "pyarrow.parquet")
    errors = pyarrow_module(file, "pyarrow").ArrowException
    try:
        opened = parquet.ParquetFile(str(file), buffer_size=BUFFER, pre_buffer=False)
    except (errors, OSError) as error:
        raise ModelwrightError(f"{shown_path(file)}: not a Parquet file, or cut short: {_one_line(error)}") from error
    with opened:
        schema = opened.schema_arrow
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise ModelwrightError(f"{shown_path(file)}: two of its columns are named {twice[0]!r:.60}")
        columns({field.name: str(field.type) for field in schema})
        number = 0
        batches = opened.iter_batches(batch_size=ROWS_IN_BATCH)
        while True:
            try:
                batch = next(batches, None)
            except (errors, OSError) as error:
                raise ModelwrightError(
                    f"{shown_path(file)}: cannot be read beyond row {number}: {_one_line(error)}"
                ) from error
            if batch is None:
                return
            for index in range(batch.num_rows):
                number += 1
                yield _row(row_file(file), number, batch, index, errors)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _row(name: str, number: int, batch: Any, index: int, errors: type[Exception]) -> Row:
    value: dict[str, Any] = {}
    troubles = []
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value[column] = plain(values[index].as_py())
        except (_NotPlainError, errors, ValueError, OverflowError) as error:
            troubles.append(f"column {column!r:.60}: {_one_line(error)}")
    if troubles:
        shown = json.dumps(value, ensure_ascii=False)[:SHOWN]
        return Row(file=name, line=number, value=None, reason=troubles[0], text=shown)
    return Row(file=name, line=number, value=value)


def plain(value: Any) -> Any:
    """A value of an Arrow array as a JSON value.

    Raises:
        _NotPlainError: it is binary and not UTF-8, or of a type that has no counterpart.
    """
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    raise _NotPlainError(f"a value of type {type(value).__name__} has no counterpart in JSON")


def _itself(value: Any) -> Any:
    return value


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _NotPlainError(f"{len(value):,} bytes that are not UTF-8 text: remove the column") from None


def _iso(value: dt.datetime | dt.date | dt.time) -> str:
    return value.isoformat()


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(plain(key)): plain(item) for key, item in value.items()}


def _array(value: list[Any]) -> Any:
    # Arrow gives a map as a list of pairs, each a tuple; no other value holds tuples.
    if value and all(isinstance(item, tuple) for item in value):
        return _object(dict(value))
    return [plain(item) for item in value]


_CONVERSIONS: tuple[tuple[tuple[type, ...], Callable[[Any], Any]], ...] = (
    ((str, bool, int, float, type(None)), _itself),
    ((bytes,), _text),
    ((dt.datetime, dt.date, dt.time), _iso),
    ((decimal.Decimal, uuid.UUID, dt.timedelta), str),
    ((dict,), _object),
    ((list,), _array),
)
