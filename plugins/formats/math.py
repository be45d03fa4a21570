r"""The format `math`: problems with worked solutions, and multiple choice, however a data set writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.answers import HASHES, last_boxed
from modelwright.plugins.formats.choices import CHOICES, read_choices
from modelwright.plugins.formats.rows import columns, filled, reference_column, text_column, with_options
from modelwright.plugins.formats.solutions import ends_with_hashes, final_answer, without_calculations

# The columns of the data sets that are recognised: what is asked, the solution, the reference answer.
_SHAPES = (
    ("problem", "solution", "answer"),
    ("problem", "generated_solution", "expected_answer"),
    ("question", "solution", "answer"),
    ("question", "answer", None),
)
_RATIONALES = ("rationale", "explanation", "solution")

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

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The example of one row: an optional system message, the question, the solution.

        Raises:
            RowError: columns are missing or are not text, or the solution states no answer.
        """
        problem = self._named(row, self.options.columns) if self.options.columns else self._recognised(row)
        said = _stated(problem, self.options)
        turns = Message(role="user", content=problem.question), Message(role="assistant", content=said)
        messages = with_options(turns, instruction=self.options.instruction, system=self.options.system)
        return [Example(messages=messages, answer=problem.answer, choices=problem.choices)]

    def _recognised(self, row: Mapping[str, Any]) -> _Problem:
        offered = filled(row, CHOICES)
        if "question" in row and offered:
            rationale = next(iter(filled(row, _RATIONALES)), None)
            return self._choice(row, "question", offered[0], rationale, None)
        for asked, solution, answer in _SHAPES:
            if asked in row and solution in row:
                return self._solved(row, asked, solution, answer if answer in row else None)
        raise RowError(
            "expected the columns question and answer (GSM8K), problem and solution (MATH), or question and choices; "
            f"this row has: {columns(row)}"
        )

    def _named(self, row: Mapping[str, Any], names: MathColumns) -> _Problem:
        for name in filter(None, (names.question, names.solution, names.answer, names.choices)):
            if name not in row:
                raise RowError(
                    f"there is no column {name!r}, which the option columns names; this row has: {columns(row)}"
                )
        if names.choices:
            return self._choice(row, names.question, names.choices, names.solution, names.answer)
        return self._solved(row, names.question, names.solution, names.answer)

    def _choice(
        self, row: Mapping[str, Any], asked: str, offered: str, rationale: str | None, right: str | None
    ) -> _Problem:
        choices = read_choices(row, offered, right)
        return _Problem(
            question=f"{text_column(row, asked)}\n\n{choices.listed()}",
            solution=self._solution(row, rationale),
            answer=choices.right,
            choices=choices.texts,
        )

    def _solved(self, row: Mapping[str, Any], asked: str, solution: str | None, answer: str | None) -> _Problem:
        worked = self._solution(row, solution)
        reference = reference_column(row, answer) if answer else None
        reference = reference and (final_answer(reference) or reference)
        reference = reference or final_answer(worked)
        if not reference:
            raise RowError(
                f"column {solution or answer!r} states no answer: expected {HASHES} and the answer at its end, or a "
                r"complete \boxed{…} with something in it"
            )
        return _Problem(question=text_column(row, asked), solution=worked, answer=reference)

    def _solution(self, row: Mapping[str, Any], column: str | None) -> str:
        if column is None:
            return ""
        text = text_column(row, column)
        return without_calculations(text) if self.options.calculator == "remove" else text


def _stated(problem: _Problem, options: MathOptions) -> str:
    """The solution with the answer stated at its end."""
    worked = problem.solution
    hashes = ends_with_hashes(worked)
    boxed = not hashes and last_boxed(worked) is not None
    marking = options.marking if options.marking != "own" else "hashes" if hashes else "boxed"
    statement = f"{HASHES} {problem.answer}" if marking == "hashes" else rf"\boxed{{{problem.answer}}}"
    if options.solution == "answer" or not worked:
        return statement
    if (marking == "hashes" and hashes) or (marking == "boxed" and boxed):
        return worked
    steps = worked.rpartition(HASHES)[0] if hashes else worked
    return f"{steps.rstrip()}\n{statement}"
