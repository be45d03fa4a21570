"""Rows of CSV files: a header, then records of text fields separated by commas."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.stages.prepare.readers.row import SHOWN, Columns, Row, row_file, shown_path
from modelwright.core.stages.prepare.readers.text import MAX_LINE, Bytes, Line, read_lines

# What Python's "surrogateescape" makes of a byte that is not UTF-8.
_ESCAPED = {chr(0xDC00 + byte): byte for byte in range(0x80, 0x100)}
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class _RecordTooLongError(Exception):
    """A record is longer than `MAX_LINE`."""


class _Feed:
    """The lines of the file for the csv module, with the size of the current record."""

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
    """The rows of a CSV file as objects of strings, by the names in its header; blank lines are skipped.

    Fields may be quoted, and quoted fields may contain line ends. An unclosed quote stops the reading, because it may
    have swallowed any number of rows.

    Raises:
        ModelwrightError: the header is unusable, or a quoted field over several lines is broken.
    """
    # This limit is global. `_Feed` bounds the size of a record; the csv module's default of 128 KiB is too small.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_LINE))
    feed = _Feed(read_lines(opened))
    header: list[str] | None = None
    for fields in _records(file, feed):
        if isinstance(fields, str):
            if header is None:
                raise ModelwrightError(f"{shown_path(file)}:{feed.first}: cannot read the header: {fields}")
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
                    f"{shown_path(file)}:{feed.first}: a quoted field that begins here is broken at line {feed.last} "
                    f"({_reason(error)}): close its quote, and double the quotes inside it"
                ) from error
            reader = csv.reader(feed, strict=True)
            yield _reason(error)
        else:
            if fields:
                yield fields


def _reason(error: Exception) -> str:
    if isinstance(error, _RecordTooLongError):
        return f"the row is too long: the maximum is {MAX_LINE:,} bytes"
    return f"not valid CSV: {error}"


def _checked_header(file: Path, names: list[str]) -> list[str]:
    def unusable(reason: str) -> ModelwrightError:
        return ModelwrightError(f"{shown_path(file)}: {reason}; the first row must name the columns")

    foreign = _foreign_byte("".join(names))
    if foreign is not None:
        raise unusable(f"the header is not UTF-8 (byte 0x{foreign:02x}): save the file as UTF-8")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise unusable(f"column {number} has no name in the header: name or remove it")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise unusable(f"the header names {twice[0]!r:.60} twice")
    separator = next((sign for sign in _OTHER_SEPARATORS if len(names) == 1 and sign in names[0]), None)
    if separator:
        raise unusable(f"the columns are separated by {_OTHER_SEPARATORS[separator]}, not commas: {names[0]!r:.60}")
    return names


def _foreign_byte(text: str) -> int | None:
    """The first byte that is not UTF-8."""
    return next((_ESCAPED[sign] for sign in text if sign in _ESCAPED), None)


def _row(file: Path, feed: _Feed, header: list[str], fields: list[str]) -> Row:
    def unreadable(reason: str) -> Row:
        return Row(file=row_file(file), line=feed.first, value=None, reason=reason, text=feed.shown)

    if len(fields) != len(header):
        return unreadable(f"expected {len(header)} fields as in the header, found {len(fields)}")
    for name, field in zip(header, fields, strict=True):
        try:
            field.encode("utf-8")
        except UnicodeEncodeError:
            return unreadable(f"not UTF-8: byte 0x{_foreign_byte(field):02x} in column {name!r:.60}")
    return Row(file=row_file(file), line=feed.first, value=dict(zip(header, fields, strict=True)))
