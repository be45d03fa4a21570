"""What the built-in metrics share: the reference of an example, and one score from the grades of several outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from modelwright.core.api import Example, Score
from modelwright.core.api.records import Verdict

NO_REFERENCE = Score(value=0.0, verdict="error", reason="the example has no reference answer")


@frozen
class Grade:
    """What one output is worth.

    Attributes:
        verdict: in a word.
        reason: why, for a person who reads the samples.
    """

    verdict: Verdict
    reason: str


def reference_answer(example: Example) -> str | None:
    """What an output is graded against: the example's answer, else what the assistant says last, else None."""
    if example.answer is not None:
        return example.answer
    said = [message.content for message in example.messages if message.role == "assistant"]
    return said[-1] if said else None


def combine(grades: Sequence[Grade]) -> Score:
    """One score of an example: the share of correct outputs.

    With one output its verdict is the score's. With several, "correct" means that all are, and another verdict is the
    commonest of the rest (the earliest of equals).
    """
    if not grades:
        return Score(value=0.0, verdict="error", reason="the model gave no output")
    if len(grades) == 1:
        return Score(value=float(grades[0].verdict == "correct"), verdict=grades[0].verdict, reason=grades[0].reason)
    rest = [grade for grade in grades if grade.verdict != "correct"]
    correct = len(grades) - len(rest)
    reason = f"{correct} of {len(grades)} outputs are correct"
    if not rest:
        return Score(value=1.0, verdict="correct", reason=reason)
    verdict = Counter(grade.verdict for grade in rest).most_common(1)[0][0]
    first = next(grade.reason for grade in rest if grade.verdict == verdict)
    return Score(value=correct / len(grades), verdict=verdict, reason=f"{reason}; {first}")


def shown(text: str, most: int = 60) -> str:
    """`text` in quotes for a reason, cut to `most` characters and printable."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")
