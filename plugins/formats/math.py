r"""The format `math`: problems with worked solutions, and multiple choice, however a data set writes them."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.answers import HASHES, last_boxed
from modelwright.plugins.formats.rows import (
    RowSchema,
    RowSchemas,
    answering,
    columns,
    filled,
    mapped,
    reference_column,
    text_column,
    with_options,
)
from modelwright.plugins.formats.solutions import final_answer, hashes_answer, without_calculations

_EXPECTED = "expected the columns question and answer (GSM8K), problem and solution (MATH), or question and choices"
_RATIONALES = ("rationale", "explanation", "solution")
# What NuminaMath writes for a problem whose answer is none that could be graded.
_NO_ANSWERS = ("proof", "notfound")

_optional_text = validators.optional(validators.min_len(1))


@frozen(kw_only=True)
class MathColumns:
    """The names of the columns, where they are to be named.

    Attributes:
        question: holds the problem.
        solution: holds the worked solution; without one the answer alone is learnt.
        answer: holds the reference answer, or says which choice is right; default: what the solution comes to.
        choices: holds the choices of a multiple-choice question.
    """

    question: str = field(validator=validators.min_len(1))
    solution: str | None = field(default=None, validator=_optional_text)
    answer: str | None = field(default=None, validator=_optional_text)
    choices: str | None = field(default=None, validator=_optional_text)


@frozen(kw_only=True)
class MathOptions:
    r"""The options of the format `math`.

    Attributes:
        instruction: put to each question: a template with `{question}`, or a text that stands before it.
        system: a system message.
        solution: what is learnt: "full" is the whole solution, "answer" the answer alone.
        calculator: whether GSM8K's annotations (`<<48/2=24>>`) stay in the solution.
        marking: how the answer is stated at the solution's end: `\boxed{72}`, `#### 72`, or as the data set does
            ("own"; where it does neither, in a box).
        columns: the names of the columns, instead of recognising them.
    """

    instruction: str | None = field(default=None, validator=_optional_text)
    system: str | None = field(default=None, validator=_optional_text)
    solution: Literal["full", "answer"] = field(default="full", validator=validators.in_(("full", "answer")))
    calculator: Literal["keep", "remove"] = field(default="remove", validator=validators.in_(("keep", "remove")))
    marking: Literal["own", "boxed", "hashes"] = field(
        default="own", validator=validators.in_(("own", "boxed", "hashes"))
    )
    columns: MathColumns | None = None


@frozen(kw_only=True)
class _Problem:
    """A row, read.

    Attributes:
        question: what is asked.
        solution: the worked solution; empty where there is none.
        answer: the reference.
        choices: the texts of the choices.
    """

    question: str
    solution: str
    answer: str
    choices: tuple[str, ...] | None = None


class MathFormat:
    r"""Reads rows of these shapes, the first that a row has; other columns are ignored.

    | shape | columns | the answer |
    |---|---|---|
    | multiple choice | `question`, `choices` or `options`, perhaps a `rationale`, `explanation` or `solution` | the letter of the choice that `answerKey`, `correct`, `answer` or `label` names: by letter, label, place from 0 or text |
    | MATH, NuminaMath | `problem`, `solution`, perhaps `answer` | `answer`, else what the solution comes to |
    | OpenMathInstruct | `problem`, `generated_solution`, `expected_answer` | `expected_answer` |
    | worked solutions | `question`, `solution`, perhaps `answer` | as MATH |
    | GSM8K | `question`, `answer` that ends with `#### 72` | what stands behind `####` |

    What a solution comes to stands behind `####` on its last line, or else in its last `\boxed{…}`. The option `columns`
    names columns instead. The reference answer, `Example.answer`, stands as it was written: `1,080` keeps its comma.
    """  # noqa: E501 - a table's row is a line

    def __init__(self, options: MathOptions) -> None:
        self.options = options
        schemas = [RowSchema(name, find, self._problem) for name, find in _SCHEMAS]
        self._schemas = mapped(options.columns, self._problem) if options.columns else RowSchemas(schemas, _EXPECTED)

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The example of one row: an optional system message, the question, the solution.

        Raises:
            RowError: columns are missing or are not text, or the solution states no answer.
        """
        problem = self._schemas.read(row)
        said = _stated(problem, self.options)
        turns = Message(role="user", content=problem.question), Message(role="assistant", content=said)
        messages = with_options(turns, instruction=self.options.instruction, system=self.options.system)
        return [Example(messages=messages, answer=problem.answer, choices=problem.choices)]

    def recognise(self, row: Mapping[str, Any]) -> str:
        """One line that says what `read` takes a row for, and by which columns.

        Raises:
            RowError: there is no shape that a row of these columns could have.
        """
        return self._schemas.recognise(row)

    def _problem(self, row: Mapping[str, Any], named: MathColumns) -> _Problem:
        return self._solved(row, named) if named.choices is None else self._choice(row, named, named.choices)

    def _choice(self, row: Mapping[str, Any], named: MathColumns, offered: str) -> _Problem:
        choices = read_choices(row, offered, named.answer)
        return _Problem(
            question=f"{text_column(row, named.question)}\n\n{choices.listed()}",
            solution=self._solution(row, named.solution),
            answer=choices.right,
            choices=choices.texts,
        )

    def _solved(self, row: Mapping[str, Any], named: MathColumns) -> _Problem:
        worked = self._solution(row, named.solution)
        reference = reference_column(row, named.answer) if named.answer is not None else None
        if reference is not None:
            reference = final_answer(reference) or (None if reference.strip().lower() in _NO_ANSWERS else reference)
        reference = reference or final_answer(worked)
        if not reference:
            raise RowError(
                f"column {named.solution or named.answer!r} states no answer: expected {HASHES} and the answer at its "
                r"end, or a complete \boxed{…} with something in it"
            )
        return _Problem(question=text_column(row, named.question), solution=worked, answer=reference)

    def _solution(self, row: Mapping[str, Any], column: str | None) -> str:
        if column is None:
            return ""
        text = answering(text_column(row, column), f"column {column!r}")
        return without_calculations(text) if self.options.calculator == "remove" else text


def _find_choices(row: Mapping[str, Any]) -> MathColumns | None:
    offered = filled(row, CHOICES) if "question" in row else None
    if not offered:
        return None
    rationale, right = (next(iter(filled(row, names)), None) for names in (_RATIONALES, RIGHT))
    return MathColumns(question="question", solution=rationale, answer=right, choices=offered[0])


def _having(columns: MathColumns) -> Callable[[Mapping[str, Any]], MathColumns | None]:
    """Finds the rows that have all of these columns."""
    names = [name for name in (columns.question, columns.solution, columns.answer) if name is not None]

    def find(row: Mapping[str, Any]) -> MathColumns | None:
        for name in names:
            if name not in row:
                return None
        return columns

    return find


# How the data sets that are recognised call their columns; the first that a row has all of are read.
_SCHEMAS: Sequence[tuple[str, Callable[[Mapping[str, Any]], MathColumns | None]]] = (
    ("multiple choice", _find_choices),
    ("NuminaMath", _having(MathColumns(question="problem", solution="solution", answer="answer"))),
    ("MATH", _having(MathColumns(question="problem", solution="solution"))),
    (
        "OpenMathInstruct",
        _having(MathColumns(question="problem", solution="generated_solution", answer="expected_answer")),
    ),
    ("OpenMathInstruct", _having(MathColumns(question="problem", solution="generated_solution"))),
    ("worked solutions", _having(MathColumns(question="question", solution="solution", answer="answer"))),
    ("worked solutions", _having(MathColumns(question="question", solution="solution"))),
    ("GSM8K", _having(MathColumns(question="question", solution="answer"))),
)


def _stated(problem: _Problem, options: MathOptions) -> str:
    """The solution with the answer stated at its end."""
    worked = problem.solution
    hashes = hashes_answer(worked) is not None
    boxed = not hashes and last_boxed(worked) is not None
    marking = options.marking if options.marking != "own" else "hashes" if hashes else "boxed"
    statement = f"{HASHES} {problem.answer}" if marking == "hashes" else rf"\boxed{{{problem.answer}}}"
    if options.solution == "answer" or not worked:
        return statement
    if (marking == "hashes" and hashes) or (marking == "boxed" and boxed):
        return worked
    steps = worked.rpartition(HASHES)[0] if hashes else worked
    return f"{steps.rstrip()}\n{statement}"


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
