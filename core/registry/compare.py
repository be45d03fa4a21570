"""The differences between registered models: configuration, data, lineage, packages, training, files and metrics.

Each model is compared with the first. A registry keeps figures, not the score of each example, so differences are those
of independent samples. If both models answered the same examples, the intervals are wider than necessary;
`modelwright evaluate --model A --model B` compares example by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attrs import frozen

from modelwright.core.api.records import Figure
from modelwright.core.api.registry import ModelVersion
from modelwright.core.registry.record import PACKAGE, TELLING

Verdict = Literal["better", "worse", "higher", "lower", "not decided"]
Row = Mapping[str, Sequence[Any]]


@frozen(kw_only=True)
class Difference:
    """The difference of a model's figure from the first model's, with its 95 % interval.

    Attributes:
        value: the model's figure minus the first model's.
        low: the lower end of the interval.
        high: the upper end.
        verdict: "better" or "worse" if the interval excludes 0 ("higher" or "lower" if the metric's direction is
            unknown), else "not decided".
    """

    value: float
    low: float
    high: float
    verdict: Verdict


@frozen(kw_only=True)
class MetricComparison:
    """One metric of one suite, for each model; None for a model that was not measured.

    Attributes:
        suite: the test set.
        metric: the metric.
        higher_is_better: its direction; None if its plugin is not installed.
        figures: for each model.
        differences: for each model but the first.
    """

    suite: str
    metric: str
    higher_is_better: bool | None
    figures: tuple[Figure | None, ...]
    differences: tuple[Difference | None, ...]


@frozen(kw_only=True)
class Comparison:
    """What differs between models; each table maps a key to the value of each model, or None.

    Attributes:
        models: their addresses.
        same_files: whether all have the same files.
        metrics: all metrics that any of them was measured by.
        config: the keys that differ, dotted.
        data: the paths whose digests differ.
        same_data: the number of paths with one digest for all.
        lineage: base, parent and name of the model, if they differ.
        environment: Modelwright, Python, the platform and the packages that influence how a model behaves.
        training: figures that differ.
        files: the digests of the files that differ.
        same_files_count: the number of files that are the same.
        tags: those that differ.
    """

    models: tuple[str, ...]
    same_files: bool
    metrics: tuple[MetricComparison, ...]
    config: Row
    data: Row
    same_data: int
    lineage: Row
    environment: Row
    training: Row
    files: Row
    same_files_count: int
    tags: Row


def compare(versions: Sequence[ModelVersion], direction: Callable[[str], bool | None]) -> Comparison:
    """Compare models with the first of them.

    Args:
        versions: two or more.
        direction: whether higher is better, by a metric's name; None if unknown.
    """
    models = [version.model for version in versions]
    data = [dict(model.data) for model in models]
    files = [{file.path: file.sha256 for file in version.files} for version in versions]
    return Comparison(
        models=tuple(version.address for version in versions),
        same_files=len({version.digest for version in versions}) == 1,
        metrics=_metrics(versions, direction),
        config=differing([_settings(model.config) for model in models]),
        data=differing(data),
        same_data=_same(data),
        lineage=differing([{"name": model.name, "base": model.base, "parent": model.parent} for model in models]),
        environment=differing([_environment(version) for version in versions]),
        training=differing([flat(model.training) for model in models]),
        files=differing(files),
        same_files_count=_same(files),
        tags=differing([dict(model.tags) for model in models]),
    )


def differing(tables: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """The keys whose values differ between the tables, in order of first appearance."""
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: tuple(table.get(key) for table in tables) for key in keys}
    return {key: row for key, row in rows.items() if any(_unlike(value, row[0]) for value in row[1:])}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without empty tables: if only one model has tags, the tags differ, not the table."""
    return {key: value for key, value in flat(config).items() if value != {}}


def _unlike(one: Any, other: Any) -> bool:
    # In Python, True == 1; in a configuration they differ.
    return bool(one != other) or isinstance(one, bool) != isinstance(other, bool)


def _same(tables: Sequence[Mapping[str, Any]]) -> int:
    return len(set().union(*tables)) - len(differing(tables))


def _environment(version: ModelVersion) -> dict[str, str]:
    recorded = version.model.environment
    pairs = {"modelwright": version.model.code_version} | {
        key: recorded[key] for key in ("python", "platform") if key in recorded
    }
    return pairs | {name: recorded[PACKAGE + name] for name in TELLING if PACKAGE + name in recorded}


def _metrics(versions: Sequence[ModelVersion], direction: Callable[[str], bool | None]) -> tuple[MetricComparison, ...]:
    measured = dict.fromkeys(
        (suite, metric) for version in versions for suite, figures in version.metrics.items() for metric in figures
    )
    compared = []
    for suite, metric in measured:
        higher = direction(metric)
        figures = tuple(version.metrics.get(suite, {}).get(metric) for version in versions)
        first = figures[0]
        differences = tuple(
            None if first is None or other is None else difference(first, other, higher_is_better=higher)
            for other in figures[1:]
        )
        compared.append(
            MetricComparison(
                suite=suite, metric=metric, higher_is_better=higher, figures=figures, differences=differences
            )
        )
    return tuple(compared)


def difference(first: Figure, other: Figure, *, higher_is_better: bool | None) -> Difference:
    """The difference of `other` from `first` as independent samples."""
    value = other.value - first.value
    low, high = difference_interval(other, first)
    # Without examples an interval says nothing.
    sign = (low > 0) - (high < 0) if first.n and other.n else 0
    return Difference(value=value, low=low, high=high, verdict=_verdict(sign, higher_is_better))


def difference_interval(one: Figure, other: Figure, correlation: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of the figure of `one` minus that of `other`, from the figures' own 95 % intervals.

    With the figures p1 and p2, their intervals [l1, u1] and [l2, u2], and the correlation r:

        low  = p1 - p2 - sqrt((p1 - l1)^2 - 2 r (p1 - l1)(u2 - p2) + (u2 - p2)^2)
        high = p1 - p2 + sqrt((u1 - p1)^2 - 2 r (u1 - p1)(p2 - l2) + (p2 - l2)^2)

    Sources: R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of
    eleven methods", Statistics in Medicine 17 (1998), 873-890, method 10, for Wilson's intervals; R. G. Newcombe,
    "Improved confidence intervals for the difference between binomial proportions based on paired data", Statistics in
    Medicine 17 (1998), 2635-2650 (the score interval, there method 8), for paired data; G. Y. Zou and A. Donner,
    "Construction of confidence limits about effect measures: a general approach", Statistics in Medicine 27 (2008),
    1693-1702, for figures that are not proportions.

    Args:
        one: a figure with its interval.
        other: the figure that is subtracted.
        correlation: Pearson's, of the two models' scores for the same examples; 0 for independent samples.
    """
    value = one.value - other.value
    down = _joined(one.value - one.low, other.high - other.value, correlation)
    up = _joined(one.high - one.value, other.value - other.low, correlation)
    return value - down, value + up


def _joined(one: float, other: float, r: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * r * one * other + other * other))


def _verdict(sign: int, higher_is_better: bool | None) -> Verdict:
    if not sign:
        return "not decided"
    if higher_is_better is None:
        return "higher" if sign > 0 else "lower"
    return "better" if (sign > 0) == higher_is_better else "worse"


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested tables and arrays of tables as `table.key` and `array[0].key`; other arrays stay whole."""
    if isinstance(value, Mapping) and (value or not key):
        return {
            name: found
            for inner, item in value.items()
            for name, found in flat(item, f"{key}.{inner}" if key else inner).items()
        }
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return {name: found for at, item in enumerate(value) for name, found in flat(item, f"{key}[{at}]").items()}
    return {key: value}
