"""What the built-in formats share: reading columns, and putting an instruction to a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelwright.core.api import RowError

QUESTION = "{question}"
_MOST_NAMES = 12


def text_column(row: Mapping[str, Any], column: str) -> str:
    """The text of a column.

    Raises:
        RowError: it is not text, or there is nothing in it but white space.
    """
    value = row[column]
    if not isinstance(value, str):
        raise RowError(f"column {column!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise RowError(f"column {column!r} is empty")
    return value


def columns(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for an error message."""
    names = [str(name)[:40] for name in row]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more


def instruct(instruction: str | None, question: str) -> str:
    """The question as the model is asked it.

    Args:
        instruction: a template with `{question}`; without that placeholder it stands before the question, with an empty
            line between; None leaves the question as it is.
        question: may hold braces of its own.
    """
    if instruction is None:
        return question
    if QUESTION in instruction:
        return instruction.replace(QUESTION, question)
    return f"{instruction}\n\n{question}"
