r"""The metric `math_accuracy`: is the answer in `\boxed{…}` or after `####` the reference's?"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from attrs import field, frozen, validators

from modelwright.core.api import Example, Figure, MissingDependencyError, Output, Score, wilson_mean
from modelwright.plugins.metrics.answers import LONGEST_ANSWER, balanced, extract_answer, normalise, same_answer
from modelwright.plugins.metrics.grading import NO_REFERENCE, Grade, combine, reference_answer, shown


@frozen(kw_only=True)
class MathAccuracyOptions:
    """The options of the metric `math_accuracy`.

    Attributes:
        time_limit: seconds that Math-Verify may take for one comparison; an answer that takes longer is wrong.
    """

    time_limit: float = field(default=5.0, validator=validators.and_(validators.gt(0.0), validators.le(3600.0)))


class MathAccuracy:
    r"""Whether the answer that an output gives is the reference answer.

    The answer is the last complete `\boxed{…}`, else what follows the last `####`, else the whole output if it is one
    short line. The reference is `Example.answer`, else what the assistant says last; where it has a box or `####`
    itself, that counts. Numbers are compared exactly; what is no number on both sides is left to Math-Verify, in a
    process of its own under a time limit. Of several outputs the value is the mean.
    """

    def __init__(self, options: MathAccuracyOptions) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingDependencyError("math_accuracy needs Math-Verify: pip install 'modelwright[train]'")
        # Imported here, so that listing the plugins does not import what starting processes takes.
        from modelwright.plugins.metrics.comparison import Comparer

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
            cut = ", it was cut off at max_tokens" if output.finish == "length" else ""
            return Grade("no_answer", rf"no \boxed{{}}, no #### and more than one short line{cut}")
        equal, why = self._compare(reference, answer)
        if equal:
            return Grade("correct", f"{shown(answer)} is {shown(reference)}{why}")
        return Grade("wrong", f"{shown(answer)} is not {shown(reference)}{why}")

    def _compare(self, reference: str, answer: str) -> tuple[bool, str]:
        if len(answer) > LONGEST_ANSWER or len(reference) > LONGEST_ANSWER:
            return answer == reference, f": longer than {LONGEST_ANSWER} characters, compared as text"
        same = same_answer(normalise(reference), normalise(answer))
        if same is not None:
            return same, ""
        if not balanced(answer):
            return False, ": its braces are unbalanced"
        compared = self._comparer.compare(reference, answer)
        return compared.equal, f": {compared.reason}"
