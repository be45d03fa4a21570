"""The metric `exact_match`."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from modelwright.core.api import Example, Figure, Output, Score, wilson_mean
from modelwright.plugins.metrics.grading import NO_REFERENCE, Grade, combine, reference_answer, shown


@frozen(kw_only=True)
class ExactMatchOptions:
    """The options of the metric `exact_match`.

    Attributes:
        ignore_case: whether "Paris" and "paris" are the same.
    """

    ignore_case: bool = False


class ExactMatch:
    """Whether the whole output is the reference answer; white space around either does not count.

    The reference is `Example.answer`, else what the assistant says last. Of several outputs the value is the mean.
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
            return Grade("correct", "the output is the reference")
        return Grade("wrong", f"expected {shown(expected)}, got {shown(written)}")
