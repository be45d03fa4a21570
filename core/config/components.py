"""The second step of reading: names of components to their descriptors, and their options to instances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, field, fields, frozen

from modelwright.core.api.components import ComponentSpec, FormatSpec, MetricSpec, TrainerSpec
from modelwright.core.api.errors import UsageError
from modelwright.core.api.training import TrainSettings
from modelwright.core.config.convert import structure
from modelwright.core.config.errors import Finding, Invalid

if TYPE_CHECKING:
    from modelwright.core.config.schema import RunConfig
    from modelwright.core.config.words import KeyPath
    from modelwright.core.plugins import Plugins

Spec = TypeVar("Spec", bound=ComponentSpec)


@frozen(kw_only=True)
class Components:
    """What a run's components are given; None where it could not be made, and then `findings` says why.

    Attributes:
        data: the format's options.
        train: the trainer's.
        suites: for each suite its format's name and that format's options.
        findings: what is wrong.
    """

    data: Any = None
    train: Any = None
    suites: tuple[tuple[str | None, Any], ...] = ()
    findings: tuple[Finding, ...] = ()

    def fill(self, config: RunConfig) -> RunConfig:
        """The configuration with its options typed and no suite's format left open."""
        suites = tuple(
            evolve(suite, format=name, options=options)
            for suite, (name, options) in zip(config.evaluate, self.suites, strict=True)
        )
        return evolve(
            config,
            data=evolve(config.data, options=self.data),
            train=evolve(config.train, options=self.train),
            evaluate=suites,
        )


def read_components(values: Mapping[str, Any], plugins: Plugins) -> Components:
    """Look up and type whatever `values`, the plain tree of a run, says about components.

    What is of the wrong shape is passed over: structuring the tree tells of it.
    """
    reader = _Reader(plugins=plugins)
    data, train, evaluate = _table(values.get("data")), _table(values.get("train", {})), values.get("evaluate", ())
    data_format = data.get("format") if data is not None else None
    data_options = reader.options(FormatSpec, data_format, data, ("data",), "format")
    default = str(fields(TrainSettings).trainer.default)
    trainer = train.get("trainer", default) if train is not None else None
    train_options = reader.options(TrainerSpec, trainer, train, ("train",), "trainer")
    reader.launching(trainer, train)
    suites = [
        reader.suite(_table(suite) or {}, ("evaluate", index), data_format, data_options)
        for index, suite in enumerate(evaluate if isinstance(evaluate, list) else ())
    ]
    url = (_table(values.get("registry")) or {}).get("url")
    if isinstance(url, str) and "://" in url:
        reader.check(lambda: plugins.registry_for(url.partition("://")[0]), ("registry", "url"))
    return Components(data=data_options, train=train_options, suites=tuple(suites), findings=tuple(reader.findings))


def _table(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


@frozen(kw_only=True)
class _Reader:
    plugins: Plugins
    findings: list[Finding] = field(factory=list)

    def check(self, look_up: Any, path: KeyPath) -> Any:
        """What `look_up` gives; its error becomes that of the key."""
        try:
            return look_up()
        except UsageError as error:
            self.findings.append((path, str(error)))
            return None

    def options(
        self, spec_type: type[Spec], name: Any, table: Mapping[str, Any] | None, path: KeyPath, key: str
    ) -> Any:
        """The options of the component `name`, out of `options` in `table`; None where there is no telling."""
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
        """Whether the trainer's processes can be started; an unknown trainer has been told of."""
        if train is None or name not in self.plugins.names(TrainerSpec.kind):
            return
        try:
            spec = self.plugins.get(TrainerSpec, name)
        except UsageError:
            return
        if spec.launcher != "python":
            self.findings.append((("train", "trainer"), f"{spec.launcher}'s launcher is not supported by this version"))
        elif isinstance(train.get("processes", 1), int) and train.get("processes", 1) > 1:
            self.findings.append((("train", "processes"), f"must be 1: trainer {name} runs in one process"))

    def metric(self, name: str, path: KeyPath) -> None:
        """Whether there is such a metric, and what it grades can be had."""
        spec = self.check(lambda: self.plugins.get(MetricSpec, name), path)
        if spec is not None and spec.inputs != "text":
            self.findings.append((path, f"{name} grades {spec.inputs}, which this version cannot give"))

    def suite(
        self, table: Mapping[str, Any], path: KeyPath, data_format: Any, data_options: Any
    ) -> tuple[str | None, Any]:
        """A suite's format and options: `[data]`'s unless it names others."""
        metrics = table.get("metrics", ())
        for index, metric in enumerate(metrics if isinstance(metrics, list) else ()):
            if isinstance(metric, str):
                self.metric(metric, (*path, "metrics", index))
        name = table.get("format", data_format)
        if not isinstance(name, str):
            return None, None
        if name == data_format and "options" not in table:
            return str(name), data_options
        key = "format" if "format" in table else "options"
        return str(name), self.options(FormatSpec, name, table, path, key)
