"""Multiple choice: a row's choices, whichever way its data set writes them, and which of them is right."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from modelwright.core.api import RowError
from modelwright.plugins.formats.rows import columns, filled

CHOICES = ("choices", "options")
RIGHT = ("answerKey", "correct", "answer", "label")
LETTERS = string.ascii_uppercase

# AQuA's "A)21", and the like.
_LABEL = re.compile(r"\s*\(?([A-Za-z0-9])[).:]\s*")


@frozen
class Choices:
    """The choices of a question.

    Attributes:
        texts: in their order; the first is A.
        right: the letter of the right one.
    """

    texts: tuple[str, ...]
    right: str

    def listed(self) -> str:
        """A line for each, with its letter."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.texts, strict=False))


def read_choices(row: Mapping[str, Any], column: str, right: str | None = None) -> Choices:
    """The choices in `column` and the right one, by its letter, its label, its place from 0, or its text.

    Args:
        row: a row.
        column: holds a list of texts, or ARC's `{"text": […], "label": […]}`.
        right: the column that says which is right; None looks for one.

    Raises:
        RowError: there are no choices, too many, or none of them is said to be the right one.
    """
    texts, labels = _texts(row[column], column)
    if not 1 < len(texts) <= len(LETTERS):
        raise RowError(f"column {column!r} must hold 2 to {len(LETTERS)} choices, not {len(texts)}")
    named = right or next(iter(filled(row, RIGHT)), None)
    if named is None:
        raise RowError(f"no column says which choice is right ({', '.join(RIGHT)}); this row has: {columns(row)}")
    if named not in row:
        raise RowError(f"there is no column {named!r}; this row has: {columns(row)}")
    place = _place(row[named], texts, labels)
    if place is None:
        raise RowError(f"column {named!r}: {row[named]!r:.60} is none of the {len(texts)} choices")
    return Choices(texts, LETTERS[place])


def _texts(value: Any, column: str) -> tuple[tuple[str, ...], Sequence[str]]:
    """The choices, and their labels where the row has some."""
    labels: Any = ()
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label", ())
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text.strip() for text in value):
        raise RowError(f"column {column!r} must be a list of texts, or text and label lists")
    marked = [_LABEL.match(text) for text in value]
    if not labels and all(marked):
        labels = [match[1] for match in marked if match]
        value = [text[match.end() :] for text, match in zip(value, marked, strict=True) if match]
    if labels and (not isinstance(labels, list | tuple) or len(labels) != len(value)):
        raise RowError(f"column {column!r} has not a label for each choice")
    return tuple(text.strip() for text in value), [str(label) for label in labels]


def _place(said: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    if isinstance(said, int) and not isinstance(said, bool):
        return said if 0 <= said < len(texts) else None
    if not isinstance(said, str):
        return None
    said = said.strip()
    for names in (labels or LETTERS[: len(texts)], texts, [str(number) for number in range(len(texts))]):
        if said in names:
            return list(names).index(said)
    return None
