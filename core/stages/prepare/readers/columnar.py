"""Rows of record batches, as plain JSON values: what files of columns have in common."""

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
from modelwright.core.stages.prepare.readers.row import SHOWN, Columns, Row, row_file, shown_path


class _NotPlainError(Exception):
    """A value has no counterpart in JSON."""


def batch_rows(
    file: Path, columns: Columns, schema: Any, batches: Iterator[Any], errors: tuple[type[Exception], ...]
) -> Iterator[Row]:
    """The rows of `batches`, pyarrow's record batches, numbered from 1.

    Times become ISO 8601 texts, decimals and UUIDs texts, maps objects, binary values texts where they are UTF-8.

    Args:
        file: where they come from.
        columns: told of the columns.
        schema: of the batches.
        batches: read one at a time.
        errors: what reading one may raise.

    Raises:
        ModelwrightError: two columns have one name, or a batch cannot be read.
    """
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise ModelwrightError(f"{shown_path(file)}: two of its columns are named {twice[0]!r:.60}")
    columns({field.name: str(field.type) for field in schema})
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except errors as error:
            raise ModelwrightError(
                f"{shown_path(file)}: cannot be read beyond row {number}: {one_line(error)}"
            ) from error
        if batch is None:
            return
        for index in range(batch.num_rows):
            number += 1
            yield _row(row_file(file), number, batch, index, errors)


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def _row(name: str, number: int, batch: Any, index: int, errors: tuple[type[Exception], ...]) -> Row:
    value: dict[str, Any] = {}
    troubles = []
    no_json: tuple[type[Exception], ...] = (_NotPlainError, *errors, ValueError, OverflowError)
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value[column] = plain(values[index].as_py())
        except no_json as error:
            troubles.append(f"column {column!r:.60}: {one_line(error)}")
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
