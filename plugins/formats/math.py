r"""The format `math`: GSM8K's question and answer with `####`, MATH's problem and solution with `\boxed{…}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api import Example, Message, RowError
from modelwright.core.api.answers import HASHES, after_hashes, last_boxed
from modelwright.plugins.formats.rows import columns, text_column, with_options
from modelwright.plugins.formats.solutions import without_calculations


@frozen(kw_only=True)
class MathOptions:
    r"""The options of the format `math`.

    Attributes:
        instruction: put to each question: a template with `{question}`, or a text that stands before it.
        system: a system message.
        solution: what is learnt: "full" is the whole solution, "answer" the answer alone, in its dataset's own marking
            (`#### 72` or `\boxed{72}`).
        calculator: whether GSM8K's annotations (`<<48/2=24>>`) stay in the solution.
    """

    instruction: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))
    system: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))
    solution: Literal["full", "answer"] = field(default="full", validator=validators.in_(("full", "answer")))
    calculator: Literal["keep", "remove"] = field(default="remove", validator=validators.in_(("keep", "remove")))


class MathFormat:
    """Reads rows of GSM8K or MATH shape, told apart by their columns; other columns are ignored.

    The reference answer, `Example.answer`, stands as it was written: `1,080` keeps its comma.
    """

    def __init__(self, options: MathOptions) -> None:
        self.options = options

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The example of one row: an optional system message, the question, the solution.

        Raises:
            RowError: columns are missing or are not text, or the solution states no answer.
        """
        if "question" in row and "answer" in row:
            question, solution, answer = self._gsm8k(row)
        elif "problem" in row and "solution" in row:
            question, solution, answer = self._math(row)
        else:
            raise RowError(
                "expected the columns question and answer (GSM8K) or problem and solution (MATH); "
                f"this row has: {columns(row)}"
            )
        turns = Message(role="user", content=question), Message(role="assistant", content=solution)
        messages = with_options(turns, instruction=self.options.instruction, system=self.options.system)
        return [Example(messages=messages, answer=answer)]

    def _gsm8k(self, row: Mapping[str, Any]) -> tuple[str, str, str]:
        question, solution = text_column(row, "question"), text_column(row, "answer")
        if self.options.calculator == "remove":
            solution = without_calculations(solution)
        answer = after_hashes(solution)
        if answer is None:
            raise RowError(f"column 'answer' states no answer: expected {HASHES} and the answer at its end")
        return question, f"{HASHES} {answer}" if self.options.solution == "answer" else solution, answer

    def _math(self, row: Mapping[str, Any]) -> tuple[str, str, str]:
        question, solution = text_column(row, "problem"), text_column(row, "solution")
        answer = last_boxed(solution)
        if not answer:
            raise RowError(r"column 'solution' states no answer: expected a complete \boxed{…} with something in it")
        return question, rf"\boxed{{{answer}}}" if self.options.solution == "answer" else solution, answer
