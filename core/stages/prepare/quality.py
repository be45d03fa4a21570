"""Which checks `[data.quality]` turns on, and what their verdicts depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from modelwright.core.api.components import FormatSpec, MetricSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.records import Example
from modelwright.core.config import to_plain
from modelwright.core.config.components import metric_with_options
from modelwright.core.config.data import QualityConfig, RowsConfig, SourceConfig
from modelwright.core.config.metrics import metric_name
from modelwright.core.config.schema import RunConfig
from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare.checks import AnswerCheck, Check, Contamination, Length, Sanity
from modelwright.core.stages.prepare.deduplicate import check_datasketch
from modelwright.core.stages.prepare.examples import read_examples
from modelwright.core.stages.prepare.sources import Row, check_source, read_source, source_digests


@contextlib.contextmanager
def example_checks(config: RunConfig, plugins: Plugins) -> Iterator[Sequence[Check]]:
    """The checks that look at each example alone, fast ones first; their resources are released at the end.

    Raises:
        ModelwrightError: a test set to compare with cannot be read.
        UsageError: there is no metric to verify answers with.
    """
    quality = config.data.quality
    checks: list[Check] = []
    with contextlib.ExitStack() as stack:
        if _asks_for_length(quality):
            checks.append(Length(quality.min_characters, quality.max_characters))
        if quality.sanity:
            checks.append(Sanity())
        if test_sets(config):
            checks.append(_contamination(config, plugins))
        if quality.verify_answers:
            label = _verifying_label(config, plugins)
            spec, options = metric_with_options(plugins, label)
            metric = spec.create(options)
            stack.callback(getattr(metric, "close", lambda: None))
            checks.append(AnswerCheck(metric, label))
        yield checks


def check_names(config: RunConfig) -> list[str]:
    """The names of all checks of the run, in the order in which they are applied."""
    quality = config.data.quality
    checks = {
        "duplicate": quality.deduplicate is not False,
        "length": _asks_for_length(quality),
        "insane": quality.sanity,
        "contaminated": bool(test_sets(config)),
        "unverified": quality.verify_answers,
        "near-duplicate": quality.deduplicate == "near",
    }
    return [name for name, wanted in checks.items() if wanted]


def check_inputs(config: RunConfig, plugins: Plugins) -> dict[str, Any]:
    """What the verdicts depend on besides the data and `[data.quality]`, as JSON values."""
    quality = config.data.quality
    inputs: dict[str, Any] = {"length": [quality.min_characters, quality.max_characters], "sanity": quality.sanity}
    if sets := test_sets(config):
        inputs["test_sets"] = [
            {
                "name": name,
                "data": source_digests(source, config.seed),
                "format": [plugins.origin(plugins.get(FormatSpec, format_name)), format_name],
                "options": to_plain(options),
            }
            for name, source, format_name, options in sets
        ]
    if quality.verify_answers:
        inputs["metric"] = [plugins.origin(verifying_metric(config, plugins)), _verifying_label(config, plugins)]
    return inputs


def _asks_for_length(quality: QualityConfig) -> bool:
    return quality.min_characters > 0 or quality.max_characters is not None


def check_quality(config: RunConfig, plugins: Plugins) -> None:
    """Check before anything starts that the checks can run.

    Raises:
        MissingDependencyError: a package is not installed.
        UsageError: there is no metric to verify answers with, or a test set to compare with does not exist.
    """
    if config.data.quality.deduplicate == "near":
        check_datasketch()
    if config.data.quality.verify_answers:
        verifying_metric(config, plugins).check()
    for _, source, _, _ in test_sets(config):
        check_source(source)


def verifying_metric(config: RunConfig, plugins: Plugins) -> MetricSpec:
    """The first metric of the run's test sets that grades text.

    Raises:
        UsageError: there is none.
    """
    return plugins.get(MetricSpec, metric_name(_verifying_label(config, plugins)))


def _verifying_label(config: RunConfig, plugins: Plugins) -> str:
    labels = (label for suite in config.evaluate for label in suite.metrics)
    found = next((one for one in labels if plugins.get(MetricSpec, metric_name(one)).inputs == "text"), None)
    if found is None:
        raise UsageError(
            "[data.quality] verify_answers needs a metric that grades text: set metrics in an [[evaluate]] table"
        )
    return found


def test_sets(config: RunConfig) -> list[tuple[str, SourceConfig, str, Any]]:
    """The test sets that must not occur in training data: name, rows, format and the options of the format."""
    quality, found = config.data.quality, []
    if quality.decontaminate:
        for suite in config.evaluate:
            assert suite.format is not None
            found.append((suite.name, suite.source, suite.format, suite.options))
    for given in quality.decontaminate_against:
        source = given.source if isinstance(given, RowsConfig) else SourceConfig(path=given)
        found.append((source.place, source, config.data.format, config.data.options))
    return found


def _contamination(config: RunConfig, plugins: Plugins) -> Contamination:
    contamination = Contamination()
    for name, source, format_name, options in test_sets(config):

        def refuse(row: Row, reason: str, name: str = name) -> None:
            raise ModelwrightError(f"decontamination against {name}: cannot read {row.file}:{row.line}: {reason}")

        reader = plugins.get(FormatSpec, format_name).create(options)
        rows = read_source(source, config.seed)
        examples: Iterator[Example] = read_examples(rows, reader, format_name=format_name, reject=refuse)
        contamination.add(name, examples)
    return contamination
