"""Rows of JSONL files (one object per line) and of JSON files (one array of objects)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.stages.prepare.readers.row import MAX_DEPTH, SHOWN, Columns, Row, row_file, shown_path, too_deep
from modelwright.core.stages.prepare.readers.text import CHUNK, Bytes, Line, read_lines

# A JSON array is read into memory, where its objects take several times the size of its text.
MAX_JSON = 2**30

_TOO_DEEP = f"nested too deeply: the maximum is {MAX_DEPTH} levels"


class RawLine(NamedTuple):
    """A line of a JSONL file, as a `RawRow` that is parsed later."""

    file: str
    line: int
    size: int
    text: bytes

    def read(self) -> Row:
        """Parse it."""
        return _row(self.file, Line(self.line, self.size, self.text))


def jsonl_rows(file: Path, opened: Bytes, columns: Columns) -> Iterator[RawLine]:  # noqa: ARG001 - rows have no schema
    """The rows of a JSONL file; blank lines are skipped."""
    name = row_file(file)
    for number, size, text in read_lines(opened):
        if text and not text.isspace():
            yield RawLine(name, number, size, text)


class _UnreadableError(Exception):
    """A line is not a row; the message says why."""


def _row(name: str, line: Line) -> Row:
    try:
        return Row(file=name, line=line.number, value=_object(line))
    except _UnreadableError as error:
        shown = line.text.decode("utf-8", "replace")[:SHOWN]
        return Row(file=name, line=line.number, value=None, reason=str(error), text=shown)


def _object(line: Line) -> dict[str, Any]:
    if line.too_long:
        raise _UnreadableError(line.too_long)
    try:
        value = json.loads(line.text.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = line.text[error.start]
        raise _UnreadableError(f"not UTF-8: byte 0x{byte:02x} at column {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise _UnreadableError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:  # a number with thousands of digits
        raise _UnreadableError(f"not readable JSON: {error}") from error
    except RecursionError as error:
        raise _UnreadableError(_TOO_DEEP) from error
    if not isinstance(value, dict):
        raise _UnreadableError(f"expected a JSON object, found {type(value).__name__}")
    if line.text.count(b"{") + line.text.count(b"[") > MAX_DEPTH and too_deep(value):  # the cheap test first
        raise _UnreadableError(_TOO_DEEP)
    return value


def json_rows(file: Path, opened: Bytes, columns: Columns) -> Iterator[Row]:  # noqa: ARG001 - rows have no schema
    """The rows of a JSON file, which is read whole.

    Raises:
        ModelwrightError: it is not a JSON array of objects, or larger than `MAX_JSON`.
    """
    values = _array(file, opened)
    name = row_file(file)
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            reason = f"expected a JSON object, found {type(value).__name__}"
        elif too_deep(value):
            reason = _TOO_DEEP
        else:
            yield Row(file=name, line=number, value=value)
            continue
        shown = "" if too_deep(value) else json.dumps(value)[:SHOWN]
        yield Row(file=name, line=number, value=None, reason=reason, text=shown)


def _array(file: Path, opened: Bytes) -> list[Any]:
    shown = shown_path(file)
    try:
        values = json.loads(_whole(file, opened).decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1}"
        raise ModelwrightError(f"{shown}: not UTF-8: {byte}: save it as UTF-8") from error
    except json.JSONDecodeError as error:
        lines = ": for one object per line, rename the file to end in .jsonl" if error.msg == "Extra data" else ""
        raise ModelwrightError(f"{shown}: not valid JSON: {error}{lines}") from error
    except (ValueError, RecursionError) as error:
        raise ModelwrightError(f"{shown}: not readable JSON: {error}") from error
    if not isinstance(values, list):
        raise ModelwrightError(f"{shown}: expected a JSON array of objects, found {type(values).__name__}")
    return values


def _whole(file: Path, opened: Bytes) -> bytearray:
    content = bytearray()
    while chunk := opened.read(CHUNK):
        content += chunk
        if len(content) > MAX_JSON:
            raise ModelwrightError(
                f"{shown_path(file)}: a .json file may have at most {MAX_JSON:,} bytes, because it is read "
                "into memory: convert it to JSONL (one object per line)"
            )
    return content
