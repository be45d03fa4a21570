"""Rows of CSV files: a header, then records whose fields are text, separated by commas."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.stages.prepare.readers.row import SHOWN, Columns, Row, row_file, shown_path
from modelwright.core.stages.prepare.readers.text import MAX_LINE, Bytes, Line, read_lines

# What a lone byte becomes that is not UTF-8 (Python's "surrogateescape").
_ESCAPED = {chr(0xDC00 + byte): byte for byte in range(0x80, 0x100)}
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class _RecordTooLongError(Exception):
    """A record has more bytes than a row may have."""


class _Feed:
    """The lines that the csv module asks for, counted for each record."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.record: list[str] = []
        self.first = self.last = 0
        self._size = 0

    def begin(self) -> None:
        """The next line begins a record."""
        self.record, self.first, self._size = [], 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first, self.last = self.first or line.number, line.number
        self._size += line.size
        text = line.text.decode("utf-8", "surrogateescape")
        self.record.append(text[:SHOWN])
        if self._size > MAX_LINE:
            raise _RecordTooLongError
        return text + "\n"

    @property
    def shown(self) -> str:
        """The beginning of the record, as text."""
        return "\n".join(self.record)[:SHOWN].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def csv_rows(file: Path, opened: Bytes, columns: Columns) -> Iterator[Row]:
    """The rows of a CSV file as objects of texts, by the names in its header; blank lines are passed over.

    Fields may be quoted, and quoted fields may have line ends. A quote that is left open may have swallowed any number
    of rows, so it stops the reading.

    Raises:
        ModelwrightError: the header cannot be used, or a quoted field goes wrong over several lines.
    """
    # The limit is the process's. What bounds a record here is its feed; the csv module's own 128 KiB are too few.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_LINE))
    feed = _Feed(read_lines(opened))
    header: list[str] | None = None
    for fields in _records(file, feed):
        if isinstance(fields, str):
            if header is None:
                raise ModelwrightError(f"{shown_path(file)}:{feed.first}: the header cannot be read: {fields}")
            yield Row(file=row_file(file), line=feed.first, value=None, reason=fields, text=feed.shown)
        elif header is None:
            header = _checked_header(file, fields)
            columns(dict.fromkeys(header, ""))
        else:
            yield _row(file, feed, header, fields)


def _records(file: Path, feed: _Feed) -> Iterator[list[str] | str]:
    """The fields of each record, or what is wrong with it."""
    reader = csv.reader(feed, strict=True)
    while True:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (_RecordTooLongError, csv.Error) as error:
            if feed.last > feed.first:
                raise ModelwrightError(
                    f"{shown_path(file)}:{feed.first}: a quoted field that begins here goes on to line {feed.last} and "
                    f"does not end as it should: close its quote, and double quotes inside it ({_reason(error)})"
                ) from error
            reader = csv.reader(feed, strict=True)
            yield _reason(error)
        else:
            if fields:
                yield fields


def _reason(error: Exception) -> str:
    if isinstance(error, _RecordTooLongError):
        return f"too long: a row may have {MAX_LINE:,} bytes"
    return f"not CSV: {error}"


def _checked_header(file: Path, names: list[str]) -> list[str]:
    def unusable(reason: str) -> ModelwrightError:
        return ModelwrightError(f"{shown_path(file)}: {reason}; the first row must be the names of the columns")

    foreign = _foreign_byte("".join(names))
    if foreign is not None:
        raise unusable(f"its header is not UTF-8 (byte 0x{foreign:02x}): save it as UTF-8")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise unusable(f"column {number} has no name in the header: name it or remove it")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise unusable(f"the header names {twice[0]!r:.60} twice")
    separator = next((sign for sign in _OTHER_SEPARATORS if len(names) == 1 and sign in names[0]), None)
    if separator:
        raise unusable(f"its columns are separated by {_OTHER_SEPARATORS[separator]}, not by commas: {names[0]!r:.60}")
    return names


def _foreign_byte(text: str) -> int | None:
    """The first byte that is not UTF-8."""
    return next((_ESCAPED[sign] for sign in text if sign in _ESCAPED), None)


def _row(file: Path, feed: _Feed, header: list[str], fields: list[str]) -> Row:
    def unreadable(reason: str) -> Row:
        return Row(file=row_file(file), line=feed.first, value=None, reason=reason, text=feed.shown)

    if len(fields) != len(header):
        return unreadable(f"{len(fields)} fields, and the header has {len(header)}")
    for name, field in zip(header, fields, strict=True):
        try:
            field.encode("utf-8")
        except UnicodeEncodeError:
            return unreadable(f"not UTF-8: byte 0x{_foreign_byte(field):02x} in column {name!r:.60}")
    return Row(file=row_file(file), line=feed.first, value=dict(zip(header, fields, strict=True)))
