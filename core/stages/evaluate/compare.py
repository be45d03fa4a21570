r"""Is one model better than another? The difference of two figures on the same examples, with its 95 % interval.

Both models answered the same examples, so their scores go up and down together, and an interval of the difference that
knows this is narrower than what two separate intervals suggest. With the figures $p_1, p_2$, their 95 % intervals
$[l_1, u_1], [l_2, u_2]$ (those of the metric, for an accuracy Wilson's) and the correlation $r$ of the examples' scores
(Pearson's; 0 where one of the models scores the same everywhere):

    low  = p1 - p2 - sqrt((p1 - l1)^2 - 2 r (p1 - l1)(u2 - p2) + (u2 - p2)^2)
    high = p1 - p2 + sqrt((u1 - p1)^2 - 2 r (u1 - p1)(p2 - l2) + (p2 - l2)^2)

Sources: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
data", Statistics in Medicine 17 (1998), 2635-2650 (the score interval, there method 8); G. Y. Zou and A. Donner,
"Construction of confidence limits about effect measures: a general approach", Statistics in Medicine 27 (2008),
1693-1702, for figures that are no proportions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from modelwright.core.api.records import Figure


@frozen(kw_only=True)
class Measured:
    """What a model scored on a suite by one metric.

    Attributes:
        model: its address.
        figure: over the whole suite.
        values: each example's score, in the suite's order.
    """

    model: str
    figure: Figure
    values: Sequence[float]


@frozen(kw_only=True)
class Difference:
    """How much more `model` has than `other`: the difference of their figures, with its 95 % interval.

    Attributes:
        model: the one.
        other: the other.
        value: figure of the one less figure of the other.
        low: end of the interval.
        high: the other end.
        n: examples that both answered.
    """

    model: str
    other: str
    value: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves no doubt which is greater, else 0."""
        return (self.low > 0) - (self.high < 0)


def difference(one: Measured, other: Measured) -> Difference:
    """Compare two models on the same examples.

    Raises:
        ValueError: they did not answer the same number of examples.
    """
    if len(one.values) != len(other.values):
        raise ValueError(f"{len(one.values)} and {len(other.values)} scores cannot be paired")
    first, second = one.figure, other.figure
    r = correlation(one.values, other.values)
    value = first.value - second.value
    down = _joined(first.value - first.low, second.high - second.value, r)
    up = _joined(first.high - first.value, second.value - second.low, r)
    return Difference(
        model=one.model, other=other.model, value=value, low=value - down, high=value + up, n=len(one.values)
    )


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    n = len(first)
    if not n:
        return 0.0
    mean, other_mean = math.fsum(first) / n, math.fsum(second) / n
    both = math.fsum((a - mean) * (b - other_mean) for a, b in zip(first, second, strict=True))
    varied = math.fsum((a - mean) ** 2 for a in first) * math.fsum((b - other_mean) ** 2 for b in second)
    if not varied > 0 or not math.isfinite(varied):
        return 0.0
    return max(-1.0, min(1.0, both / math.sqrt(varied)))


def differences(measured: Sequence[Measured]) -> list[Difference]:
    """Every two models of the same suite and metric, as far as their figures are numbers."""
    return [difference(one, other) for one, other in itertools.combinations(measured, 2) if _finite(one, other)]


def clearly_best(figures: Mapping[str, float], compared: Sequence[Difference], *, higher_is_better: bool) -> str | None:
    """The model that is better than each other one beyond doubt; None where there is none, or only one model."""
    wanted = 1 if higher_is_better else -1
    for model in figures:
        against = list(_of(model, compared))
        if len(figures) > 1 and len(against) == len(figures) - 1 and all(sign == wanted for sign in against):
            return model
    return None


def _of(model: str, compared: Sequence[Difference]) -> Iterator[int]:
    """The signs of a model's differences, as seen from it."""
    for each in compared:
        if model == each.model:
            yield each.sign
        elif model == each.other:
            yield -each.sign


def _joined(one: float, other: float, r: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * r * one * other + other * other))


def _finite(*measured: Measured) -> bool:
    return all(math.isfinite(x) for each in measured for x in (each.figure.value, each.figure.low, each.figure.high))
