"""From raw rows to examples: the format reads, what it cannot read is kept aside with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import attrs
from attrs import define, field

from modelwright.core.api import files
from modelwright.core.api.components import Format
from modelwright.core.api.errors import ModelwrightError, RowError
from modelwright.core.api.records import Example
from modelwright.core.prepare.sources import Row


class FormatFailedError(ModelwrightError):
    """A format failed in another way than by RowError; that is the plugin's mistake."""


@define
class Rejected:
    """Writes `rejected.jsonl` and counts by reason.

    Attributes:
        path: the file; it is made with the first rejected row.
        count: rows rejected so far.
        first: the first one, for the message that stops a run.
        reasons: how often each reason came.
    """

    path: Path
    count: int = 0
    first: str = ""
    reasons: dict[str, int] = field(factory=dict)

    def add(self, row: Row, reason: str) -> None:
        """Keep a row aside."""
        # A reason may quote the row; a lone surrogate in it could be written to no report.
        reason = reason.encode("utf-8", "backslashreplace").decode("utf-8")
        if not self.count:
            self.first = f"{row.file}:{row.line}: {reason}"
        self.count += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        value: Any = row.text if row.value is None else row.value
        line = {"file": row.file, "line": row.line, "reason": reason, "row": value}
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def too_many(self, rows: int, allowed: float, *, key: str) -> str | None:
        """Why the data are not fit for use, where more than the share `allowed` of `rows` is rejected.

        Args:
            rows: how many rows there were.
            allowed: the share, 0 to 1.
            key: where it was set, for the message.
        """
        if self.count <= allowed * rows:
            return None
        return (
            f"{self.count} of {rows} rows cannot be read ({self.count / rows:.1%}; {key} is {allowed:.1%}); "
            f"the first is {self.first}"
        )


@define
class Counts:
    """What became of the rows so far.

    Attributes:
        rows: that were read.
        examples: that were written.
    """

    rows: int = 0
    examples: int = 0


def write_examples(
    rows: Iterable[Row],
    reader: Format,
    file: IO[bytes],
    *,
    format_name: str,
    reject: Callable[[Row, str], None],
    keep: Callable[[Example], bool],
    progress: Callable[[int], None],
) -> Counts:
    """Write the examples of `rows` as interchange JSONL: the one way from rows to examples.

    Args:
        rows: the raw rows.
        reader: the format.
        file: to write to.
        format_name: the format's name, for messages.
        reject: told of each row that cannot be read, and why.
        keep: whether an example is written; asked in the order of the rows.
        progress: called with the number of rows before each; may raise to stop.

    Raises:
        FormatFailedError: the format failed in another way than by RowError.
    """
    counts = Counts()

    def counted() -> Iterator[Row]:
        for row in rows:
            counts.rows += 1
            progress(counts.rows)
            yield row

    for example in read_examples(counted(), reader, format_name=format_name, reject=reject):
        if keep(example):
            counts.examples += 1
            file.write(files.json_line(example.to_row()).encode("utf-8"))
    return counts


def read_examples(
    rows: Iterable[Row], reader: Format, *, format_name: str, reject: Callable[[Row, str], None]
) -> Iterator[Example]:
    """The examples of `rows`, each with its source as `file:line`.

    Raises:
        FormatFailedError: the format failed in another way than by RowError.
    """
    for row in rows:
        if row.value is None:
            reject(row, row.reason)
            continue
        try:
            examples = [_checked(example) for example in reader.read(row.value)]
        except RowError as error:
            reject(row, str(error))
            continue
        except Exception as error:
            raise FormatFailedError(
                f"format {format_name!r} failed on {row.file}:{row.line}: {type(error).__name__}: {error} "
                "(a format reports a row that it cannot read by RowError)"
            ) from error
        for example in examples:
            yield attrs.evolve(example, source=f"{row.file}:{row.line}")


def _checked(example: Example) -> Example:
    if not isinstance(example, Example):
        msg = f"it gave {type(example).__name__}, not Example"
        raise TypeError(msg)
    try:
        json.dumps(example.to_row(), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("its text has a lone surrogate, which is no character") from None
    return example
