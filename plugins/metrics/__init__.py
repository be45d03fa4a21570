"""The built-in metrics: `exact_match` and `math_accuracy`."""

from __future__ import annotations

from collections.abc import Iterable

from modelwright.core.api import MetricSpec, hookimpl
from modelwright.plugins.metrics.grading import ExactMatchOptions, MathAccuracyOptions


@hookimpl
def modelwright_metrics() -> Iterable[MetricSpec]:
    """The metrics of this package."""
    yield MetricSpec(
        name="exact_match",
        summary="the whole output is the reference answer",
        options=ExactMatchOptions,
        factory="modelwright.plugins.metrics.grading:ExactMatch",
    )
    yield MetricSpec(
        name="math_accuracy",
        summary=r"the answer in \boxed{} or after #### equals the reference, as numbers or as mathematics",
        options=MathAccuracyOptions,
        factory="modelwright.plugins.metrics.grading:MathAccuracy",
        needs="modelwright[train]",
    )
