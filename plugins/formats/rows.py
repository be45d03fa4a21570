"""What the built-in formats share: reading columns, the options of all formats, and the table of row schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
from attrs import evolve, frozen

from modelwright.core.api import Message, RowError
from modelwright.core.api.answers import THINK_CLOSE, THINK_OPEN
from modelwright.core.api.wording import listed

QUESTION = "{question}"
ANSWER = "answer"
SYSTEMS = ("system", "system_prompt")
# Columns with the input of a task, by the column of the task.
_INPUTS = {"instruction": ("input", "context"), "question": ("context",)}
_MOST_NAMES = 12


def text_column(row: Mapping[str, Any], column: str) -> str:
    """The text of a column.

    Raises:
        RowError: it is not text, or only white space.
    """
    value = row[column]
    if not isinstance(value, str):
        raise RowError(f"column {column!r}: expected text, found {type(value).__name__}")
    if not value.strip():
        raise RowError(f"column {column!r} is empty")
    return value


def columns(row: Mapping[str, Any]) -> str:
    """The names of the columns of a row, for an error message."""
    names = [str(name)[:40] for name in row]
    return listed(names, _MOST_NAMES) or "none"


def is_blank(value: Any) -> bool:
    """Whether a column is empty: None, or only white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def filled(row: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of `names` whose columns are not empty, in their order."""
    return [name for name in names if not is_blank(row.get(name))]


def reference_column(row: Mapping[str, Any], column: str = ANSWER) -> str | None:
    """The reference answer in a column, for metrics; None if the column is empty.

    Raises:
        RowError: it is neither text nor a number.
    """
    value = row.get(column)
    if is_blank(value):
        return None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else text_column(row, column)


def input_column(row: Mapping[str, Any], prompt: str) -> str | None:
    """The column with the input of a task: alpaca's `input`, Dolly's `context`; None if there is none."""
    return next(iter(filled(row, _INPUTS.get(prompt, ()))), None)


def question_text(row: Mapping[str, Any], prompt: str, given: str | None) -> str:
    """The question; the text of the column `given` follows it after an empty line.

    Raises:
        RowError: as `text_column`.
    """
    question = text_column(row, prompt)
    return question if given is None or is_blank(row[given]) else f"{question}\n\n{text_column(row, given)}"


def answering(text: str, where: str, *, called: bool = False) -> str:
    """Check a text of the assistant: if it begins with thinking, that must end, and an answer or a call must follow.

    Raises:
        RowError: it begins with `<think>` without `</think>`, or nothing follows that and no tool is `called`.
    """
    if THINK_OPEN in text and text.lstrip().startswith(THINK_OPEN):
        _, closed, answer = text.partition(THINK_CLOSE)
        if not closed:
            raise RowError(f"{where}: {THINK_OPEN} without {THINK_CLOSE}: complete the text, or remove the row")
        if not called and not answer.strip():
            raise RowError(f"{where}: expected an answer after {THINK_CLOSE}, found nothing")
    return text


def instruct(instruction: str | None, question: str) -> str:
    """The question as the model gets it.

    Args:
        instruction: a template with `{question}`; without the placeholder, a text that precedes the question with an
            empty line between; None leaves the question as it is.
        question: may contain braces.
    """
    if instruction is None:
        return question
    if QUESTION in instruction:
        return instruction.replace(QUESTION, question)
    return f"{instruction}\n\n{question}"


def with_options(messages: Sequence[Message], *, instruction: str | None, system: str | None) -> Sequence[Message]:
    """The conversation with the instruction at its first question, and with the system message if it has none."""
    changed = list(messages)
    if instruction is not None:
        first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
        if first is not None:
            changed[first] = evolve(changed[first], content=instruct(instruction, changed[first].content))
    if system is not None and (not changed or changed[0].role != "system"):
        changed.insert(0, Message(role="system", content=system))
    return changed


def with_system(messages: Sequence[Message], row: Mapping[str, Any], column: str | None) -> Sequence[Message]:
    """The conversation, preceded by the system message in a column of the row.

    Raises:
        RowError: the column is not text, or the conversation begins with a different system message.
    """
    if column is None or is_blank(row[column]):
        return messages
    system = text_column(row, column)
    if not messages or messages[0].role != "system":
        return [Message(role="system", content=system), *messages]
    if messages[0].content.strip() != system.strip():
        raise RowError(f"column {column!r} and the first message are different system messages: remove one")
    return messages


Reading = TypeVar("Reading")
Row = Mapping[str, Any]


@frozen
class RowSchema(Generic[Reading]):
    """One way in which data sets lay out their rows.

    Attributes:
        name: its name, for people.
        find: returns what to read from a row with this schema, None for any other row: an attrs class whose text fields
            are names of columns.
        read: reads a row, given what `find` returned.
        note: shown after the first column, if the names of the columns are ambiguous.
        mapped: whether the option `columns` named the columns.
    """

    name: str
    find: Callable[[Row], Any]
    read: Callable[[Row, Any], Reading]
    note: str = ""
    mapped: bool = False

    def line(self, found: Any) -> str:
        """The schema and its columns, for people."""
        named = [f"{name} ← {column}" if self.mapped else column for name, column in _named(found)]
        if named and self.note:
            named[0] = f"{named[0]} {self.note}"
        return f"{self.name}: {', '.join(named)}" if named else self.name


class RowSchemas(Generic[Reading]):
    """RowSchemas in the order in which they are tried.

    Args:
        schemas: the first that fits a row is used.
        expected: the error message if none fits.
    """

    def __init__(self, schemas: Sequence[RowSchema[Reading]], expected: str) -> None:
        self._schemas = tuple(schemas)
        self._expected = expected

    def read(self, row: Row) -> Reading:
        """Read a row with the first schema that fits.

        Raises:
            RowError: no schema fits, or a column has the wrong content.
        """
        schema, found = self._find(row)
        return schema.read(row, found)

    def detect(self, row: Row) -> str:
        """One line that describes what a row is read as.

        Raises:
            RowError: no schema fits.
        """
        schema, found = self._find(row)
        return schema.line(found)

    def _find(self, row: Row) -> tuple[RowSchema[Reading], Any]:
        for schema in self._schemas:
            found = schema.find(row)
            if found is not None:
                return schema, found
        raise RowError(f"{self._expected}; columns of this row: {columns(row)}")


def mapped(named: Any, read: Callable[[Row, Any], Reading]) -> RowSchemas[Reading]:
    """The table for columns named by the option `columns`: a single schema.

    Args:
        named: the option `columns`, an attrs class whose fields are names of columns or None.
        read: reads a row from it.
    """
    names = [column for _, column in _named(named)]

    def find(row: Row) -> Any:
        for column in names:
            if column not in row:
                raise RowError(
                    f"column {column!r} is missing, which the option columns names; columns of this row: {columns(row)}"
                )
        return named

    return RowSchemas([RowSchema("columns as mapped", find, read, mapped=True)], "")


def _named(found: Any) -> list[tuple[str, str]]:
    """The columns in `found`, each with the name of its field."""
    return [
        (field.name, column)
        for field in attrs.fields(type(found))
        if isinstance(column := getattr(found, field.name), str)
    ]
