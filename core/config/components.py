"""The second step of reading: names of components become descriptors, and their options instances."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import NOTHING, evolve, field, fields, frozen

from modelwright.core.api.components import ComponentSpec, FormatSpec, MetricSpec, TrainerSpec
from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import canonical_json
from modelwright.core.api.train_settings import TrainSettings
from modelwright.core.api.wording import either
from modelwright.core.config.errors import Finding, Invalid, KeyPath, shown
from modelwright.core.config.metrics import NAME, Choice, MetricLabel, parse_metric
from modelwright.core.config.registry import parse_condition
from modelwright.core.config.schema import EvalConfig, RunConfig, SuiteConfig
from modelwright.core.config.structure import attributes_of, plain, structure

if TYPE_CHECKING:
    from modelwright.core.plugins import Plugins

Spec = TypeVar("Spec", bound=ComponentSpec)
Suite = TypeVar("Suite", bound=SuiteConfig)
Root = TypeVar("Root", RunConfig, EvalConfig)
Suites = tuple[tuple[str | None, Any], ...]


@frozen(kw_only=True)
class Components(Generic[Root]):
    """The components that a file names.

    Attributes:
        findings: everything that is wrong with them.
        values: the tree, with every valid metric in its canonical form.
        fill: completes a configuration without findings: options become instances, and each suite gets its format.
    """

    findings: tuple[Finding, ...]
    values: Mapping[str, Any]
    fill: Callable[[Root], Root]


def run_components(values: Mapping[str, Any], plugins: Plugins) -> Components[RunConfig]:
    """Look up the components named in `values`, the plain tree of a run, and structure their options.

    Values of the wrong type are passed over; structuring the tree reports them.
    """
    reader = _Reader(plugins=plugins)
    data = _table(values.get("data"))
    train = None if values.get("train") is False else _table(values.get("train", {}))
    data_format = data.get("format") if data is not None else None
    data_options = reader.options(FormatSpec, data_format, data, ("data",), "format")
    default = str(fields(TrainSettings).trainer.default)
    trainer = train.get("trainer", default) if train is not None else None
    train_options = reader.options(TrainerSpec, trainer, train, ("train",), "trainer")
    reader.launching(trainer, train)
    reader.adapting(trainer, values)
    suites = reader.suites(values, data_format, data_options)
    reader.registry(values)
    reader.promotion(values)

    def fill(config: RunConfig) -> RunConfig:
        return evolve(
            config,
            data=evolve(config.data, options=data_options),
            train=config.train and evolve(config.train, options=train_options),
            evaluate=_filled(config.evaluate, suites),
        )

    return Components(findings=tuple(reader.findings), values=reader.canonical(values), fill=fill)


def eval_components(values: Mapping[str, Any], plugins: Plugins) -> Components[EvalConfig]:
    """As `run_components`, for the plain tree of an evaluation file."""
    reader = _Reader(plugins=plugins)
    suites = reader.suites(values, None, None)
    reader.registry(values)
    return Components(
        findings=tuple(reader.findings),
        values=reader.canonical(values),
        fill=lambda config: evolve(config, evaluate=_filled(config.evaluate, suites)),
    )


def metric_with_options(plugins: Plugins, label: str) -> tuple[MetricSpec, Any]:
    """The metric that a label of a checked configuration names, and an instance of its options class.

    Raises:
        UsageError: there is no such metric.
    """
    choice = parse_metric(label)
    spec = plugins.get(MetricSpec, choice.name)
    return spec, structure(choice.options, spec.options)


def _changed(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults, as plain values; an option without a default always does."""
    attributes = attributes_of(type(options))
    required = {key for key, one in attributes.items() if one.default is NOTHING}
    given = {str(attributes[key].alias): getattr(options, attributes[key].name) for key in required}
    usual = plain(type(options)(**given))
    return {
        key: value
        for key, value in plain(options).items()
        if key in required or canonical_json(usual.get(key)) != canonical_json(value)  # as JSON, 1 is not true
    }


def _filled(suites: Sequence[Suite], components: Suites) -> tuple[Suite, ...]:
    return tuple(
        evolve(suite, format=name, options=options) for suite, (name, options) in zip(suites, components, strict=True)
    )


def _table(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


@frozen(kw_only=True)
class _Reader:
    plugins: Plugins
    findings: list[Finding] = field(factory=list)
    labels: dict[KeyPath, MetricLabel] = field(factory=dict)

    def check(self, look_up: Any, path: KeyPath) -> Any:
        """The result of `look_up`; its error becomes a finding about the key."""
        try:
            return look_up()
        except UsageError as error:
            self.findings.append((path, str(error)))
            return None

    def options(
        self, spec_type: type[Spec], name: Any, table: Mapping[str, Any] | None, path: KeyPath, key: str
    ) -> Any:
        """The options of the component `name`, from `options` in `table`; None if something is wrong."""
        if table is None or not isinstance(name, str):
            return None
        spec = self.check(lambda: self.plugins.get(spec_type, str(name)), (*path, key))
        if spec is None:
            return None
        try:
            return structure(table.get("options", {}), spec.options)
        except Invalid as error:
            self.findings.extend(((*path, "options", *inner), message) for inner, message in error.findings)
            return None

    def launching(self, name: Any, train: Mapping[str, Any] | None) -> None:
        """Check that the trainer can run that many processes. An unknown trainer is reported elsewhere."""
        if train is None or name not in self.plugins.names(TrainerSpec.kind):
            return
        try:
            spec = self.plugins.get(TrainerSpec, name)
        except UsageError:
            return
        processes = train.get("processes", 1)
        if spec.launcher == "python" and isinstance(processes, int) and processes > 1:
            message = f'must be 1: trainer {name} runs in one process; for several, set trainer = "deepspeed"'
            self.findings.append((("train", "processes"), message))

    def adapting(self, name: Any, values: Mapping[str, Any]) -> None:
        """Check that the trainer can train the adapter, if there is one. An unknown trainer is reported elsewhere."""
        if values.get("adapter") is None or name not in self.plugins.names(TrainerSpec.kind):
            return
        kind = (values.get("model") or {}).get("quantization")
        with contextlib.suppress(UsageError):
            spec = self.plugins.get(TrainerSpec, name)
            if not spec.adapters:
                self.findings.append((("adapter",), f"trainer {name} does not train adapters: remove [adapter]"))
            elif kind is not None and kind not in spec.quantizations:
                instead = f"choose {either(spec.quantizations)}, or remove it" if spec.quantizations else "remove it"
                message = f"trainer {name} does not train adapters on weights of {shown(kind)}: {instead}"
                self.findings.append((("model", "quantization"), message))

    def metric(self, value: Any, path: KeyPath) -> None:
        """Check that a metric exists, that its options are right, and that this version can give what it grades."""
        try:
            choice = parse_metric(value)
        except Invalid:
            return  # structuring the tree reports it
        at = (*path, NAME) if isinstance(value, Mapping) else path
        spec = self.check(lambda: self.plugins.get(MetricSpec, choice.name), at)
        if spec is None:
            return
        if spec.inputs != "text":
            why = f"metric {choice.name} needs {spec.inputs}, which are not supported yet: choose another metric"
            self.findings.append((at, why))
        try:
            options = structure(choice.options, spec.options)
        except Invalid as error:
            self.findings.extend(((*path, *inner), message) for inner, message in error.findings)
            return
        self.labels[path] = Choice(choice.name, _changed(options)).label

    def canonical(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tree with every valid metric as its label, without options that have their default."""
        tables = values.get("evaluate")
        if not self.labels or not isinstance(tables, list | tuple):
            return values
        made = []
        for index, table in enumerate(tables):
            metrics = (_table(table) or {}).get("metrics")
            if isinstance(metrics, list | tuple):
                path = ("evaluate", index, "metrics")
                labels = [self.labels.get((*path, number), metric) for number, metric in enumerate(metrics)]
                made.append({**table, "metrics": labels})
            else:
                made.append(table)
        return {**values, "evaluate": made}

    def suites(self, values: Mapping[str, Any], data_format: Any, data_options: Any) -> Suites:
        """The format and its options of each of `[[evaluate]]`."""
        tables = values.get("evaluate", ())
        return tuple(
            self._suite(_table(table) or {}, ("evaluate", index), data_format, data_options)
            for index, table in enumerate(tables if isinstance(tables, list) else ())
        )

    def registry(self, values: Mapping[str, Any]) -> None:
        """Check that there is a backend for the registry's URL."""
        url = (_table(values.get("registry")) or {}).get("url")
        if isinstance(url, str) and "://" in url:
            self.check(lambda: self.plugins.registry_for(url.partition("://")[0]), ("registry", "url"))

    def promotion(self, values: Mapping[str, Any]) -> None:
        """Check that the run measures what the condition of its promotion names.

        A metric that is wrong may be meant to be that one, so nothing is said beside such an error.
        """
        promote = _table((_table(values.get("registry")) or {}).get("promote")) or {}
        try:
            clauses = parse_condition(str(promote["if"])).clauses if "if" in promote else ()
        except UsageError:
            return  # structuring the tree reports it
        tables = values.get("evaluate", ())
        measured = []
        for index, table in enumerate(tables if isinstance(tables, list) else ()):
            suite, metrics = ((_table(table) or {}).get(key) for key in ("name", "metrics"))
            for number in range(len(metrics) if isinstance(metrics, list | tuple) else 0):
                label = self.labels.get(("evaluate", index, "metrics", number))
                if label is None:
                    return
                measured.append(f"{suite}.{label}")
        for clause in clauses:
            if clause.measure not in measured:
                why = f"the run does not measure {clause.measure} (it measures: {', '.join(measured) or 'nothing'})"
                self.findings.append((("registry", "promote", "if"), why))

    def _suite(
        self, table: Mapping[str, Any], path: KeyPath, data_format: Any, data_options: Any
    ) -> tuple[str | None, Any]:
        """A suite's format and options: `[data]`'s unless it names others."""
        metrics = table.get("metrics", ())
        for index, metric in enumerate(metrics if isinstance(metrics, list | tuple) else ()):
            self.metric(metric, (*path, "metrics", index))
        name = table.get("format", data_format)
        if not isinstance(name, str):
            return None, None
        if name == data_format and "options" not in table:
            return str(name), data_options
        key = "format" if "format" in table else "options"
        return str(name), self.options(FormatSpec, name, table, path, key)
