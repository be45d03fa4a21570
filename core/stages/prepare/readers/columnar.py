"""Rows of Parquet and Arrow files, as plain JSON values, a batch at a time; and data sets saved by `datasets`."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.wording import one_line
from modelwright.core.stages.prepare.readers.row import SHOWN, Columns, Row, row_file, shown_path
from modelwright.core.stages.prepare.readers.text import pyarrow_module


class _NotPlainError(Exception):
    """JSON cannot represent a value."""


def batch_rows(
    file: Path, columns: Columns, schema: Any, batches: Iterator[Any], errors: tuple[type[Exception], ...]
) -> Iterator[Row]:
    """The rows of `batches`, pyarrow's record batches, numbered from 1.

    Times become ISO 8601 strings, decimals and UUIDs strings, maps objects, and binary values strings if they are
    UTF-8. Objects lose the keys with null, because Arrow adds those for every key that any other row's object has.

    Args:
        file: where they come from.
        columns: called with the columns and their types.
        schema: of the batches.
        batches: read one at a time.
        errors: exceptions that reading a batch may raise.

    Raises:
        ModelwrightError: two columns have one name, or a batch cannot be read.
    """
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise ModelwrightError(f"{shown_path(file)}: two columns are named {twice[0]!r:.60}: rename one")
    columns({field.name: str(field.type) for field in schema})
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except errors as error:
            raise ModelwrightError(f"{shown_path(file)}: cannot read after row {number}: {one_line(error)}") from error
        if batch is None:
            return
        for index in range(batch.num_rows):
            number += 1
            cells = zip(batch.schema.names, (values[index].as_py for values in batch.columns), strict=True)
            yield plain_row(row_file(file), number, cells, errors)


def plain_row(
    name: str,
    number: int,
    cells: Iterable[tuple[str, Callable[[], Any]]],
    errors: tuple[type[Exception], ...] = (),
) -> Row:
    """A row of typed columns, or what is wrong with it.

    Args:
        name: as `Row.file`.
        number: as `Row.line`.
        cells: each column's name and what gives its value.
        errors: exceptions that giving a value may raise.
    """
    value: dict[str, Any] = {}
    troubles = []
    no_json: tuple[type[Exception], ...] = (_NotPlainError, *errors, ValueError, OverflowError)
    for column, cell in cells:
        try:
            value[column] = plain(cell())
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
    raise _NotPlainError(f"JSON cannot represent a value of type {type(value).__name__}: remove or convert the column")


def _itself(value: Any) -> Any:
    return value


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _NotPlainError(f"found {len(value):,} bytes that are not UTF-8 text: remove the column") from None


def _iso(value: dt.datetime | dt.date | dt.time) -> str:
    return value.isoformat()


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): plain(item) for key, item in value.items() if item is not None}


def _array(value: list[Any]) -> Any:
    # Arrow returns a map as a list of tuples, whose nulls somebody wrote; no other value contains tuples.
    if value and all(isinstance(item, tuple) for item in value):
        return {str(plain(key)): plain(item) for key, item in value}
    return [plain(item) for item in value]


_CONVERSIONS: tuple[tuple[tuple[type, ...], Callable[[Any], Any]], ...] = (
    ((str, bool, int, float, type(None)), _itself),
    ((bytes,), _text),
    ((dt.datetime, dt.date, dt.time), _iso),
    ((decimal.Decimal, uuid.UUID, dt.timedelta), str),
    ((dict,), _object),
    ((list,), _array),
)


ROWS_IN_BATCH = 256
BUFFER = 2**20  # bytes read ahead for each column, instead of a whole row group


def parquet_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a Parquet file. Row groups are streamed, so memory grows neither with them nor with the file.

    Raises:
        ModelwrightError: it is not a Parquet file, or truncated.
        MissingDependencyError: pyarrow is not installed.
    """
    parquet = pyarrow_module(file, "pyarrow.parquet")
    errors = (pyarrow_module(file, "pyarrow").ArrowException, OSError)
    try:
        opened = parquet.ParquetFile(str(file), buffer_size=BUFFER, pre_buffer=False)
    except errors as error:
        raise ModelwrightError(f"{shown_path(file)}: not a Parquet file, or truncated: {one_line(error)}") from error
    with opened:
        batches = opened.iter_batches(batch_size=ROWS_IN_BATCH)
        yield from batch_rows(file, columns, opened.schema_arrow, batches, errors)


# An Arrow file begins with this, an Arrow stream does not; `datasets` writes streams.
MAGIC = b"ARROW1"


def arrow_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of an Arrow file or stream, read from a memory map.

    Raises:
        ModelwrightError: it is neither, or truncated.
        MissingDependencyError: pyarrow is not installed.
    """
    arrow = pyarrow_module(file, "pyarrow")
    ipc = pyarrow_module(file, "pyarrow.ipc")
    errors = (arrow.ArrowException, OSError)
    try:
        with file.open("rb") as opened:
            is_file = opened.read(len(MAGIC)) == MAGIC
        source = arrow.memory_map(str(file))
        reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
    except errors as error:
        raise ModelwrightError(f"{shown_path(file)}: not an Arrow file, or truncated: {one_line(error)}") from error
    with source:
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from batch_rows(file, columns, reader.schema, batches, errors)


def saved_dataset(folder: Path) -> list[Path] | None:
    """The files of a data set that `Dataset.save_to_disk` wrote to `folder`, in order; None for any other folder.

    Raises:
        UsageError: the data set has several splits, so the path must name one; or its state.json cannot be read.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json").get("splits", [])
        named = ", ".join(str(folder / split) for split in splits)
        raise UsageError(f"{shown_path(folder)}: this data set has several splits: name one of {named}")
    if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
        return None
    try:
        return [folder / each["filename"] for each in _read(folder / "state.json")["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{shown_path(folder / 'state.json')}: it does not list the data files: save the data set again"
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown_path(file)}: cannot read: {one_line(error)}") from error
    return value if isinstance(value, dict) else {}
