"""From raw rows to examples: the format reads each row, and rejected rows are kept with their reasons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field

from modelwright.core.api import files
from modelwright.core.api.components import Format
from modelwright.core.api.errors import ModelwrightError, RowError
from modelwright.core.api.records import Example
from modelwright.core.stages.prepare.sources import RawRow, Row


class FormatFailedError(ModelwrightError):
    """A format raised something other than RowError: a bug in the plugin."""


@define
class Rejected:
    """Writes `rejected.jsonl` and counts by reason.

    Attributes:
        path: the file; created with the first rejected row.
        count: the number of rows rejected so far.
        first: the first of them, for error messages.
        reasons: the number of rows for each reason.
    """

    path: Path
    count: int = 0
    first: str = ""
    reasons: dict[str, int] = field(factory=dict)

    def add(self, row: Row, reason: str) -> None:
        """Write down a rejected row."""
        # A reason may quote the row, and a lone surrogate in it cannot be written to a report.
        reason = reason.encode("utf-8", "backslashreplace").decode("utf-8")
        if not self.count:
            self.first = f"{row.file}:{row.line}: {reason}"
        self.count += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        value: Any = row.text if row.value is None else row.value
        line = {"file": row.file, "line": row.line, "reason": reason, "row": value}
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(files.json_line(line))

    def add_all(self, other: Path, count: int, reasons: Mapping[str, int], first: str) -> None:
        """Add rows that were rejected elsewhere: their file, and the other values as in this class."""
        if not count:
            return
        self.first = self.first or first
        self.count += count
        for reason, times in reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + times
        with other.open("rb") as source, self.path.open("ab") as file:
            shutil.copyfileobj(source, file)

    def too_many(self, rows: int, allowed: float, *, key: str) -> str | None:
        """An error message if more than the fraction `allowed` of `rows` is rejected, else None.

        Args:
            rows: the number of rows.
            allowed: a fraction, 0 to 1.
            key: the option that set it.
        """
        if self.count <= allowed * rows:
            return None
        return (
            f"{self.count} of {rows} rows were rejected ({self.count / rows:.1%}, more than {key} = {allowed:.1%}); "
            f"the first: {self.first}"
        )


def read_examples(
    rows: Iterable[RawRow], reader: Format, *, format_name: str, reject: Callable[[Row, str], None]
) -> Iterator[Example]:
    """The examples of `rows`, each with its source as `file:line`.

    Raises:
        FormatFailedError: the format raised something other than RowError.
    """
    return (example for example, _ in read_lines(rows, reader, format_name=format_name, reject=reject))


def read_lines(
    rows: Iterable[RawRow],
    reader: Format,
    *,
    format_name: str,
    reject: Callable[[Row, str], None],
    on_row: Callable[[Row], None] = lambda _row: None,
) -> Iterator[tuple[Example, bytes]]:
    """The examples of `rows`, each with its line of interchange JSONL. All rows become examples here.

    Args:
        rows: the raw rows.
        reader: the format.
        format_name: the format's name, for messages.
        reject: called with each row that cannot be read, and the reason.
        on_row: called with every row that the format gets.

    Raises:
        FormatFailedError: the format raised something other than RowError.
    """
    for raw in rows:
        row = raw.read()
        if row.value is None:
            reject(row, row.reason)
            continue
        on_row(row)
        source = f"{row.file}:{row.line}"
        try:
            examples = [_line(example, source) for example in reader.read(row.value)]
        except RowError as error:
            reject(row, str(error))
            continue
        except Exception as error:
            raise FormatFailedError(
                f"format {format_name!r} failed on {source}: {type(error).__name__}: {error} "
                "(a format must raise RowError for a row that it cannot read)"
            ) from error
        yield from examples


def _line(example: Example, source: str) -> tuple[Example, bytes]:
    if not isinstance(example, Example):
        msg = f"expected Example, found {type(example).__name__}"
        raise TypeError(msg)
    example = attrs.evolve(example, source=source)
    try:
        return example, files.json_line(example.to_row()).encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("the text contains a lone surrogate (half of a UTF-16 pair): fix its encoding") from None


def written_examples(folder: Path) -> Iterator[Example]:
    """The examples in a folder of interchange JSONL files, in the order of the file names."""
    return map(Example.from_row, written_rows(folder))


def written_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """As `written_examples`, but JSON objects."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            yield from map(json.loads, file)
