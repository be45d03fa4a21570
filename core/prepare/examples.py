"""From raw rows to examples: the format reads, what it cannot read is kept aside with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field

from modelwright.core.api.components import Format
from modelwright.core.api.errors import ModelwrightError, RowError
from modelwright.core.api.records import Example
from modelwright.core.prepare.sources import Row


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
        if not self.count:
            self.first = f"{row.file}:{row.line}: {reason}"
        self.count += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        value: Any = row.text if row.value is None else row.value
        line = {"file": row.file, "line": row.line, "reason": reason, "row": value}
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_examples(
    rows: Iterable[Row], reader: Format, *, format_name: str, reject: Callable[[Row, str], None]
) -> Iterator[Example]:
    """The examples of `rows`, each with its source as `file:line`.

    Raises:
        ModelwrightError: the format failed in another way than by RowError; that is the plugin's mistake.
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
            raise ModelwrightError(
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


def without_duplicates(examples: Iterable[Example], count: Callable[[], None]) -> Iterator[Example]:
    """The first of each content (the example's id); `count` is called for each that is left out."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            count()
            continue
        seen.add(example.id)
        yield example
