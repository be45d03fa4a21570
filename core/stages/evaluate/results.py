"""What an evaluation without a run leaves for programs: results.json and samples.jsonl.

results.json, `schema` 1:

    schema          counts up when a key changes its meaning
    version         Modelwright's
    begun, ended    in UTC, ISO 8601, of the command that wrote this
    seed            of everything random
    models          [{address, name, version, digest, requested}]; requested: the addresses on the command line or in
                    the file
    suites          [{name, path, format, options, metrics: {metric: {name, options, higher_is_better}}, limit,
                    samples, generation, data: [{file, digest}], examples}]; metric: the figure's name, such as
                    `exact_match(ignore_case=true)`; options: all, defaults included; examples: their number
    results         [{model, suite, examples, metrics: {metric: {value, low, high, n}}, verdicts: {metric: {verdict:
                    count}}, finishes: {finish: count}, generating_seconds}]
    comparisons     [{suite, metric, model, other, value, low, high, n}]: the figure of model less that of other, with
                    its 95 % interval (`difference` below says how)
    best            [{suite, metric, model}]: only where a model is better than each other one beyond doubt
    failed          [{model, suite, error}]; suite is null where the model could not be used at all
    environment     versions of Python, the platform and the packages

Comparisons say whether one model is better than another: the difference of two figures on the same examples, with its
95 % interval.
Both models answered the same examples, so their scores go up and down together, and an interval of the difference that
takes their correlation into account is narrower than what two separate intervals suggest. The formula and its sources
are in `core.registry.compare.difference_interval`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from modelwright import __version__
from modelwright.core.api import files
from modelwright.core.api.records import Figure
from modelwright.core.config import to_plain
from modelwright.core.config.components import metric_with_options
from modelwright.core.config.schema import EvalConfig, SuiteConfig
from modelwright.core.config.structure import plain
from modelwright.core.plugins import Plugins
from modelwright.core.registry.compare import difference_interval
from modelwright.core.registry.record import environment
from modelwright.core.stages.evaluate.suites import suite_digests
from modelwright.core.stages.evaluate.work_list import Chosen, Failure, Task


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
    value = one.figure.value - other.figure.value
    low, high = difference_interval(one.figure, other.figure, correlation(one.values, other.values))
    return Difference(model=one.model, other=other.model, value=value, low=low, high=high, n=len(one.values))


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


def _finite(*measured: Measured) -> bool:
    return all(math.isfinite(x) for each in measured for x in (each.figure.value, each.figure.low, each.figure.high))


SCHEMA = 1
RESULTS = "results.json"
SAMPLES = "samples.jsonl"

# How many wrong answers of each model and suite the report shows.
WRONG_ANSWERS = 3


@define(kw_only=True)
class Collected:
    """A graded task, as far as reports need it.

    Attributes:
        model: the model's address.
        suite: the suite's name.
        results: the task's results.json.
        values: by metric, each example's score.
        wrong: the first samples that are not correct by the suite's first metric.
    """

    model: str
    suite: str
    results: Mapping[str, Any]
    values: dict[str, list[float]] = field(factory=dict)
    wrong: list[Mapping[str, Any]] = field(factory=list)

    def measured(self, metric: str) -> Measured:
        """What is compared of it."""
        return Measured(model=self.model, figure=Figure(**self.results["metrics"][metric]), values=self.values[metric])


def collect(tasks: Sequence[Task], output: Path) -> list[Collected]:
    """Read the samples of all tasks once: they become samples.jsonl, and what reports need is kept.

    Raises:
        DamagedError: a task's samples are not what grading left there.
    """
    collected = []
    with files.writing(output / SAMPLES) as file:
        for task in tasks:
            results = task.results()
            assert results is not None
            one = Collected(model=task.model.address, suite=task.suite, results=results)
            remedy = f"remove {task.folder}, and the same command grades it again"
            for row in files.read_rows(task.samples, ("example", "outputs", "scores"), remedy=remedy):
                file.write(files.json_line({"model": one.model, "suite": one.suite, **row}).encode("utf-8"))
                _keep(one, row)
            collected.append(one)
    return collected


def _keep(one: Collected, row: Mapping[str, Any]) -> None:
    for metric, score in row["scores"].items():
        one.values.setdefault(metric, []).append(score["value"])
    first = next(iter(row["scores"].values()))
    if first["verdict"] != "correct" and len(one.wrong) < WRONG_ANSWERS:
        one.wrong.append(row)


def describe(
    config: EvalConfig,
    chosen: Sequence[Chosen],
    collected: Sequence[Collected],
    failures: Sequence[Failure],
    plugins: Plugins,
    *,
    begun: datetime,
) -> dict[str, Any]:
    """What results.json holds; the module's docstring says what that is."""
    suites = [
        _suite(suite, values, config.seed, collected, plugins)
        for suite, values in zip(config.evaluate, to_plain(config)["evaluate"], strict=True)
    ]
    compared, best = _compare(suites, collected)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "begun": begun.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "models": [
            {
                "address": one.model.address,
                "name": one.model.name,
                "version": one.model.version,
                "digest": one.model.digest,
                "requested": list(one.requested),
            }
            for one in chosen
        ],
        "suites": suites,
        "results": [_result(one) for one in collected],
        "comparisons": compared,
        "best": best,
        "failed": [asdict(failure) for failure in failures],
        "environment": environment(),
    }


def _suite(
    suite: SuiteConfig, values: Mapping[str, Any], seed: int, collected: Sequence[Collected], plugins: Plugins
) -> dict[str, Any]:
    examples = next((one.results["examples"] for one in collected if one.suite == suite.name), None)
    metrics = {label: _metric(label, plugins) for label in suite.metrics}
    return {
        "name": suite.name,
        "path": suite.path,
        "format": suite.format,
        "options": values.get("options", {}),
        "metrics": metrics,
        "limit": suite.limit,
        "samples": suite.samples,
        "generation": asdict(suite.generation),
        "data": [{"file": name, "digest": digest} for name, digest in suite_digests(suite, seed)],
        "examples": examples,
    }


def _metric(label: str, plugins: Plugins) -> dict[str, Any]:
    spec, options = metric_with_options(plugins, label)
    return {"name": spec.name, "options": plain(options), "higher_is_better": spec.higher_is_better}


def _result(one: Collected) -> dict[str, Any]:
    keys = ("examples", "metrics", "verdicts", "finishes", "generating_seconds")
    return {"model": one.model, "suite": one.suite, **{key: one.results[key] for key in keys}}


def _compare(
    suites: Sequence[Mapping[str, Any]], collected: Sequence[Collected]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every two models on every suite by every metric; and the models that are beyond doubt the best."""
    compared: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []
    for suite in suites:
        graded = [one for one in collected if one.suite == suite["name"]]
        for metric, facts in suite["metrics"].items():
            measured = [one.measured(metric) for one in graded]
            found = differences(measured)
            compared += [{"suite": suite["name"], "metric": metric, **asdict(one)} for one in found]
            figures = {one.model: one.figure.value for one in measured}
            model = clearly_best(figures, found, higher_is_better=facts["higher_is_better"])
            best += [{"suite": suite["name"], "metric": metric, "model": model}] if model else []
    return compared, best
