"""What the built-in formats share: reading columns, asking the question, and the options that every one of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
from attrs import evolve, frozen

from modelwright.core.api import Message, RowError
from modelwright.core.api.answers import THINK_CLOSE, THINK_OPEN

QUESTION = "{question}"
ANSWER = "answer"
SYSTEMS = ("system", "system_prompt")
# What is asked about stands in a column of its own; each beside the columns that ask.
_INPUTS = {"instruction": ("input", "context"), "question": ("context",)}
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


def is_blank(value: Any) -> bool:
    """Whether a column holds nothing: None, or text without a word."""
    return value is None or (isinstance(value, str) and not value.strip())


def filled(row: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of `names` under which the row holds something, in their order."""
    return [name for name in names if not is_blank(row.get(name))]


def reference_column(row: Mapping[str, Any], column: str = ANSWER) -> str | None:
    """What a column with the reference that metrics grade against holds; None where it holds nothing.

    Raises:
        RowError: it holds something else than text or a number.
    """
    value = row.get(column)
    if is_blank(value):
        return None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else text_column(row, column)


def input_column(row: Mapping[str, Any], prompt: str) -> str | None:
    """The column with what a question is about: alpaca's `input`, Dolly's `context`; None where there is none."""
    return next(iter(filled(row, _INPUTS.get(prompt, ()))), None)


def question_text(row: Mapping[str, Any], prompt: str, given: str | None) -> str:
    """What is asked; the text of the column `given` stands behind it with an empty line between.

    Raises:
        RowError: as `text_column`.
    """
    asked = text_column(row, prompt)
    return asked if given is None or is_blank(row[given]) else f"{asked}\n\n{text_column(row, given)}"


def answering(text: str, where: str, *, called: bool = False) -> str:
    """A text of the assistant; thinking that it begins with must end, and an answer or a call must follow.

    Raises:
        RowError: it begins with `<think>` and has no `</think>`, or nothing stands behind that and no tool is `called`.
    """
    if THINK_OPEN in text and text.lstrip().startswith(THINK_OPEN):
        _, closed, answer = text.partition(THINK_CLOSE)
        if not closed:
            raise RowError(
                f"{where}: {THINK_OPEN} is not closed by {THINK_CLOSE}; complete the text, or leave the row out"
            )
        if not called and not answer.strip():
            raise RowError(f"{where}: nothing stands after {THINK_CLOSE}; an answer must follow the thinking")
    return text


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


def with_options(messages: Sequence[Message], *, instruction: str | None, system: str | None) -> Sequence[Message]:
    """The conversation with the instruction at its first question and, where it brings none, the system message."""
    changed = list(messages)
    if instruction is not None:
        asked = next((index for index, message in enumerate(messages) if message.role == "user"), None)
        if asked is not None:
            changed[asked] = evolve(changed[asked], content=instruct(instruction, changed[asked].content))
    if system is not None and (not changed or changed[0].role != "system"):
        changed.insert(0, Message(role="system", content=system))
    return changed


def with_system(messages: Sequence[Message], row: Mapping[str, Any], column: str | None) -> Sequence[Message]:
    """The conversation behind the system message in a row's column.

    Raises:
        RowError: the column holds something else than text, or the conversation begins with another system message.
    """
    if column is None or is_blank(row[column]):
        return messages
    system = text_column(row, column)
    if not messages or messages[0].role != "system":
        return [Message(role="system", content=system), *messages]
    if messages[0].content.strip() != system.strip():
        raise RowError(f"column {column!r} and the first message are different system messages; leave one out")
    return messages


Reading = TypeVar("Reading")
Row = Mapping[str, Any]


@frozen
class RowSchema(Generic[Reading]):
    """One way in which data sets write their rows.

    Attributes:
        name: what people call it.
        find: what a row of this shape is read from; None for any other row. It is an attrs class whose text fields
            are names of columns.
        read: reads a row from what `find` gave.
        note: stands behind the first column, where the columns' names leave something open.
        mapped: whether a person named the columns.
    """

    name: str
    find: Callable[[Row], Any]
    read: Callable[[Row, Any], Reading]
    note: str = ""
    mapped: bool = False

    def line(self, found: Any) -> str:
        """The shape and the columns, for people."""
        named = [f"{name} ← {column}" if self.mapped else column for name, column in _named(found)]
        if named and self.note:
            named[0] = f"{named[0]} {self.note}"
        return f"{self.name}: {', '.join(named)}" if named else self.name


class RowSchemas(Generic[Reading]):
    """RowSchemas in the order in which they are tried.

    Args:
        schemas: the first that fits a row is taken.
        expected: what to say where none fits.
    """

    def __init__(self, schemas: Sequence[RowSchema[Reading]], expected: str) -> None:
        self._schemas = tuple(schemas)
        self._expected = expected

    def read(self, row: Row) -> Reading:
        """What the first shape that fits makes of a row.

        Raises:
            RowError: none fits, or the row holds something else than its columns promise.
        """
        schema, found = self._find(row)
        return schema.read(row, found)

    def recognise(self, row: Row) -> str:
        """One line that says what a row is read as.

        Raises:
            RowError: no shape fits.
        """
        schema, found = self._find(row)
        return schema.line(found)

    def _find(self, row: Row) -> tuple[RowSchema[Reading], Any]:
        for schema in self._schemas:
            found = schema.find(row)
            if found is not None:
                return schema, found
        raise RowError(f"{self._expected}; this row has: {columns(row)}")


def mapped(named: Any, read: Callable[[Row, Any], Reading]) -> RowSchemas[Reading]:
    """The table for columns that a person has named: it has one shape, which is nothing but those columns.

    Args:
        named: an attrs class whose fields are names of columns or None: the option `columns`.
        read: reads a row from it.
    """
    names = [column for _, column in _named(named)]

    def find(row: Row) -> Any:
        for column in names:
            if column not in row:
                raise RowError(
                    f"there is no column {column!r}, which the option columns names; this row has: {columns(row)}"
                )
        return named

    return RowSchemas([RowSchema("columns as mapped", find, read, mapped=True)], "")


def _named(found: Any) -> list[tuple[str, str]]:
    """The columns that something is read from, each with what it is."""
    return [
        (field.name, column)
        for field in attrs.fields(type(found))
        if isinstance(column := getattr(found, field.name), str)
    ]
