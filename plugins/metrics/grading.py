"""The built-in metrics `exact_match` and `math_accuracy`, and what they share: references, grades, scores."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence

from attrs import field, frozen, validators

from modelwright.core.api import Example, Figure, MissingDependencyError, Output, Score, wilson_mean
from modelwright.core.api.records import Verdict
from modelwright.plugins.metrics.answers import LONGEST_ANSWER, balanced, extract_answer, normalise, same_answer

NO_REFERENCE = Score(value=0.0, verdict="error", reason="the example has no reference answer")


@frozen
class Grade:
    """The grade of one output.

    Attributes:
        verdict: the grade in a word.
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
        return Score(value=0.0, verdict="error", reason="the model produced no output")
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


@frozen(kw_only=True)
class ExactMatchOptions:
    """The options of the metric `exact_match`.

    Attributes:
        ignore_case: Treat upper and lower case as equal: "paris" matches "Paris".
    """

    ignore_case: bool = False


class ExactMatch:
    """Whether the whole output is the reference answer; white space around either does not count.

    The reference is `Example.answer`, else what the assistant says last. With several outputs the value is their mean.
    """

    def __init__(self, options: ExactMatchOptions) -> None:
        self.options = options

    def score(self, example: Example, outputs: Sequence[Output]) -> Score:
        """Grade the outputs of one example."""
        reference = reference_answer(example)
        if reference is None:
            return NO_REFERENCE
        return combine([self._grade(reference, output.text) for output in outputs])

    def aggregate(self, scores: Sequence[Score]) -> Figure:
        """The mean with its Wilson interval."""
        return wilson_mean(scores)

    def _grade(self, reference: str, text: str) -> Grade:
        expected, written = reference.strip(), text.strip()
        if not written and expected:
            return Grade("no_answer", "the output is empty")
        same = expected.casefold() == written.casefold() if self.options.ignore_case else expected == written
        if same:
            return Grade("correct", "the output equals the reference")
        return Grade("wrong", f"expected {shown(expected)}, got {shown(written)}")


@frozen(kw_only=True)
class MathAccuracyOptions:
    """The options of the metric `math_accuracy`.

    Attributes:
        time_limit: Maximum time in seconds for one comparison by Math-Verify. An answer that takes longer counts as
            wrong. Raise it on a slow machine.
    """

    time_limit: float = field(default=5.0, validator=validators.and_(validators.gt(0.0), validators.le(3600.0)))


class MathAccuracy:
    r"""Whether the answer that an output gives is the reference answer.

    The answer is the last complete `\boxed{…}`, else what follows the last `####`, else the whole output if it is one
    short line. The reference is `Example.answer`, else what the assistant says last; where it has a box or `####`
    itself, that counts. Numbers are compared exactly; everything else is left to Math-Verify, in a
    process of its own under a time limit. With several outputs the value is their mean.
    """

    def __init__(self, options: MathAccuracyOptions) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingDependencyError("math_accuracy needs Math-Verify: pip install 'modelwright[train]'")
        # Imported here, so that listing the plugins does not import what starting processes takes.
        from modelwright.plugins.metrics.math_verify_process import Comparer

        self.options = options
        self._comparer = Comparer(options.time_limit)

    def score(self, example: Example, outputs: Sequence[Output]) -> Score:
        """Grade the outputs of one example."""
        stated = reference_answer(example)
        if stated is None or not stated.strip():
            return NO_REFERENCE
        reference = extract_answer(stated) or stated.strip()
        return combine([self._grade(reference, output) for output in outputs])

    def aggregate(self, scores: Sequence[Score]) -> Figure:
        """The mean with its Wilson interval."""
        return wilson_mean(scores)

    def close(self) -> None:
        """End Math-Verify's process; the next comparison that needs one starts another."""
        self._comparer.close()

    def _grade(self, reference: str, output: Output) -> Grade:
        answer = extract_answer(output.text)
        if answer is None:
            cut = "; cut off at max_tokens" if output.finish == "length" else ""
            return Grade("no_answer", rf"no answer found: no \boxed{{}}, no ####, and not a single short line{cut}")
        equal, why = self._compare(reference, answer)
        if equal:
            return Grade("correct", f"{shown(answer)} equals {shown(reference)}{why}")
        return Grade("wrong", f"{shown(answer)} does not equal {shown(reference)}{why}")

    def _compare(self, reference: str, answer: str) -> tuple[bool, str]:
        if len(answer) > LONGEST_ANSWER or len(reference) > LONGEST_ANSWER:
            return answer == reference, f": longer than {LONGEST_ANSWER} characters, so compared as text"
        same = same_answer(normalise(reference), normalise(answer))
        if same is not None:
            return same, ""
        if not balanced(answer):
            return False, ": its braces are unbalanced"
        compared = self._comparer.compare(reference, answer)
        return compared.equal, f": {compared.reason}"
