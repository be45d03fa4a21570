"""What an evaluation without a run leaves for programs: results.json and samples.jsonl.

results.json, `schema` 1:

    schema          counts up when a key changes its meaning
    version         Modelwright's
    begun, ended    in UTC, ISO 8601, of the command that wrote this
    seed            of everything random
    models          [{address, name, version, digest, asked}]; asked: the addresses on the command line or in the file
    suites          [{name, path, format, options, metrics: {metric: {name, options, higher_is_better}}, limit,
                    samples, generation, data: [{file, digest}], examples}]; metric: the figure's name, such as
                    `exact_match(ignore_case=true)`; options: all, defaults included; examples: how many were asked
    results         [{model, suite, examples, metrics: {metric: {value, low, high, n}}, verdicts: {metric: {verdict:
                    count}}, finishes: {finish: count}, generating_seconds}]
    comparisons     [{suite, metric, model, other, value, low, high, n}]: the figure of model less that of other, with
                    its 95 % interval (`core.stages.evaluate.compare` says how)
    best            [{suite, metric, model}]: only where a model is better than each other one beyond doubt
    failed          [{model, suite, error}]; suite is null where the model could not be used at all
    environment     versions of Python, the platform and the packages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, define, field

from modelwright import __version__
from modelwright.core.api import files
from modelwright.core.api.records import Figure
from modelwright.core.config import to_plain
from modelwright.core.config.components import metric_with_options
from modelwright.core.config.convert import plain
from modelwright.core.config.schema import EvalConfig, SuiteConfig
from modelwright.core.plugins import Plugins
from modelwright.core.registry.environment import environment
from modelwright.core.stages.evaluate.compare import Measured, clearly_best, differences
from modelwright.core.stages.evaluate.models import Chosen
from modelwright.core.stages.evaluate.suites import suite_digests
from modelwright.core.stages.evaluate.work_list import Failure, Pair

SCHEMA = 1
RESULTS = "results.json"
SAMPLES = "samples.jsonl"

# How many wrong answers of each model and suite the report shows.
WRONG_ANSWERS = 3


@define(kw_only=True)
class Collected:
    """A graded pair, as far as reports need it.

    Attributes:
        model: the model's address.
        suite: the suite's name.
        results: the pair's results.json.
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


def collect(pairs: Sequence[Pair], output: Path) -> list[Collected]:
    """Read the samples of all pairs once: they become samples.jsonl, and what reports need is kept.

    Raises:
        DamagedError: a pair's samples are not what grading left there.
    """
    collected = []
    with files.writing(output / SAMPLES) as file:
        for pair in pairs:
            results = pair.results()
            assert results is not None
            one = Collected(model=pair.model.address, suite=pair.suite, results=results)
            remedy = f"remove {pair.folder}, and the same command grades it again"
            for row in files.read_rows(pair.samples, ("example", "outputs", "scores"), remedy=remedy):
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
                "asked": list(one.asked),
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
