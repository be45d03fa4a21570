r"""The format `math`: problems with worked solutions, and multiple choice, in the layouts of common data sets."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.answers import HASHES, last_boxed
from modelwright.core.api.wording import either
from modelwright.plugins.formats.rows import (
    RowSchema,
    RowSchemas,
    answering,
    columns,
    filled,
    from_json_text,
    mapped,
    reference_column,
    text_column,
    with_options,
)
from modelwright.plugins.formats.solutions import final_answer, hashes_answer, without_calculations

_EXPECTED = "expected the columns question and answer (GSM8K), problem and solution (MATH), or question and choices"
_RATIONALES = ("rationale", "explanation", "solution")
# What NuminaMath writes if a problem has no answer that can be graded.
_NO_ANSWERS = ("proof", "notfound")

_optional_text = validators.optional(validators.min_len(1))


@frozen(kw_only=True)
class MathColumns:
    """The names of the columns, instead of detecting them.

    Attributes:
        question: the column with the problem.
        solution: the column with the worked solution. Without one, only the answer is trained.
        answer: the column with the reference answer or the right choice; default: the final answer of the solution.
        choices: the column with the choices of a multiple-choice question.
    """

    question: str = field(validator=validators.min_len(1))
    solution: str | None = field(default=None, validator=_optional_text)
    answer: str | None = field(default=None, validator=_optional_text)
    choices: str | None = field(default=None, validator=_optional_text)


@frozen(kw_only=True)
class MathOptions:
    r"""The options of the format `math`.

    Attributes:
        instruction: prompt for each question: a template with `{question}`, or a text that precedes the question.
        system: a system message for every conversation.
        solution: what to train on: "full" is the whole solution, "answer" only the final answer.
        calculator: whether to keep or remove the calculator annotations of GSM8K (`<<48/2=24>>`).
        marking: how the solution ends: "boxed" is `\boxed{72}`, "hashes" is `#### 72`, "own" keeps what the data set
            has (a box if it has neither). Choose the one that your metric expects.
        columns: the names of the columns. Set it if the format does not detect them.
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
    """A parsed row.

    Attributes:
        question: the problem.
        solution: the worked solution; empty if there is none.
        answer: the reference answer.
        choices: the texts of the choices.
    """

    question: str
    solution: str
    answer: str
    choices: tuple[str, ...] | None = None


class MathFormat:
    r"""Reads rows with these schemas; the first that fits is used, and other columns are ignored.

    | schema | columns | the answer |
    |---|---|---|
    | multiple choice | `question`, `choices` or `options`, perhaps a `rationale`, `explanation` or `solution` | the letter of the choice that `answerKey`, `correct`, `answer` or `label` names: by letter, label, index from 0, or text |
    | MATH, NuminaMath | `problem`, `solution`, perhaps `answer` | `answer`, else the final answer of the solution |
    | OpenMathInstruct | `problem` or `question`, `generated_solution`, perhaps `expected_answer` | as MATH, from `expected_answer` |
    | worked solutions | `question`, `solution`, perhaps `answer` | as MATH |
    | GSM8K | `question`, `answer` that ends with `#### 72` | the text after `####` |

    The final answer of a solution follows `####` on its last line, or else is in its last `\boxed{…}`. The option `columns`
    sets the columns explicitly. The reference answer, `Example.answer`, is kept as written: `1,080` keeps its comma.
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

    def detect(self, row: Mapping[str, Any]) -> str:
        """One line that describes what `read` takes a row for, and by which columns.

        Raises:
            RowError: no schema fits the columns.
        """
        return self._schemas.detect(row)

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
                f"column {named.solution or named.answer!r}: expected a final answer after {HASHES} on the last line, "
                r"or in \boxed{…}"
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
    """A function that finds the rows with all of these columns."""
    names = [name for name in (columns.question, columns.solution, columns.answer) if name is not None]

    def find(row: Mapping[str, Any]) -> MathColumns | None:
        for name in names:
            if name not in row:
                return None
        return columns

    return find


# The columns of known data sets; the first entry whose columns a row has is used.
_SCHEMAS: Sequence[tuple[str, Callable[[Mapping[str, Any]], MathColumns | None]]] = (
    ("multiple choice", _find_choices),
    ("NuminaMath", _having(MathColumns(question="problem", solution="solution", answer="answer"))),
    ("MATH", _having(MathColumns(question="problem", solution="solution"))),
    (
        "OpenMathInstruct",
        _having(MathColumns(question="problem", solution="generated_solution", answer="expected_answer")),
    ),
    ("OpenMathInstruct", _having(MathColumns(question="problem", solution="generated_solution"))),
    (
        "OpenMathInstruct",
        _having(MathColumns(question="question", solution="generated_solution", answer="expected_answer")),
    ),
    ("OpenMathInstruct", _having(MathColumns(question="question", solution="generated_solution"))),
    ("worked solutions", _having(MathColumns(question="question", solution="solution", answer="answer"))),
    ("worked solutions", _having(MathColumns(question="question", solution="solution"))),
    ("GSM8K", _having(MathColumns(question="question", solution="answer"))),
)


def _stated(problem: _Problem, options: MathOptions) -> str:
    """The solution, ending with the answer in the chosen marking."""
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
    """The choices of a multiple-choice question.

    Attributes:
        texts: the choices in order; the first is A.
        right: the letter of the right one.
    """

    texts: tuple[str, ...]
    right: str

    def listed(self) -> str:
        """One line for each choice, with its letter."""
        return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, self.texts, strict=False))


def read_choices(row: Mapping[str, Any], column: str, right: str | None = None) -> Choices:
    """The choices in `column`; the right one is given by its letter, label, index from 0, or text.

    Args:
        row: a row.
        column: the column with a list of texts, or ARC's `{"text": […], "label": […]}`.
        right: the column with the right choice; None to find it.

    Raises:
        RowError: the choices are missing, too many, or the right one is not among them.
    """
    texts, labels = _texts(row[column], column)
    if not 1 < len(texts) <= len(LETTERS):
        raise RowError(f"column {column!r}: expected 2 to {len(LETTERS)} choices, found {len(texts)}")
    named = right or next(iter(filled(row, RIGHT)), None)
    if named is None:
        raise RowError(
            f"expected a column with the right choice ({either(RIGHT)}); columns of this row: {columns(row)}"
        )
    if named not in row:
        raise RowError(f"column {named!r} is missing; columns of this row: {columns(row)}")
    place = _place(row[named], texts, labels)
    if place is None:
        raise RowError(f"column {named!r}: expected one of the {len(texts)} choices, found {row[named]!r:.60}")
    return Choices(texts, LETTERS[place])


def _texts(value: Any, column: str) -> tuple[tuple[str, ...], Sequence[str]]:
    """The choices, and their labels if the row has them."""
    labels: Any = ()
    value = from_json_text(value)
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label", ())
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text.strip() for text in value):
        raise RowError(f"column {column!r}: expected a list of texts, or an object with the lists text and label")
    marked = [_LABEL.match(text) for text in value]
    if not labels and all(marked):
        labels = [match[1] for match in marked if match]
        value = [text[match.end() :] for text, match in zip(value, marked, strict=True) if match]
    if labels and (not isinstance(labels, list | tuple) or len(labels) != len(value)):
        raise RowError(f"column {column!r}: expected one label for each choice")
    return tuple(text.strip() for text in value), [str(label) for label in labels]


def _place(said: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    if isinstance(said, float) and said.is_integer():  # what pandas makes of integers in a column with gaps
        said = int(said)
    if isinstance(said, int) and not isinstance(said, bool):
        return said if 0 <= said < len(texts) else None
    if not isinstance(said, str):
        return None
    said = said.strip()
    for names in (labels or LETTERS[: len(texts)], texts, [str(number) for number in range(len(texts))]):
        if said in names:
            return list(names).index(said)
    return None
