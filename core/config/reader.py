"""run.toml to `RunConfig`s: every variant, every mistake at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from modelwright.core.config.components import Components, read_components
from modelwright.core.config.convert import plain, structure
from modelwright.core.config.documents import Document, read_document
from modelwright.core.config.errors import ConfigError, Finding, Invalid, Problem
from modelwright.core.config.layers import Layers, Origin, Override, located, parse_override, put_all
from modelwright.core.config.paths import Written
from modelwright.core.config.schema import VARIANT_NAME, PluginsConfig, RunConfig
from modelwright.core.config.words import KeyPath, closest, dotted, shown
from modelwright.core.plugins import Plugins, discover

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# What belongs to the file as a whole, with the reason why a variant cannot have it.
_NOT_IN_A_VARIANT = {
    "name": "a variant's name is made of the file's: NAME-VARIANT",
    "plugins": "plugins are chosen once, for all variants",
    "variants": "a variant cannot have variants",
    "extends": "extends is not supported by this version",
}


@frozen(kw_only=True)
class Runs:
    """A run.toml, read.

    Attributes:
        path: the file, absolute.
        plugins: those that it was read with.
        configs: one for each variant chosen; the file's own where it has no variants.
    """

    path: Path
    plugins: Plugins
    configs: tuple[RunConfig, ...]


def read_run(
    path: Path,
    *,
    variants: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
) -> Runs:
    """Read a run.toml.

    Args:
        path: the file.
        variants: those wanted; all by default.
        overrides: `K=V`, as given to `--set`.
        plugins: to look components up in; by default those installed, less what `[plugins]` disables.

    Raises:
        ConfigError: with a line for everything that is wrong.
    """
    document = read_document(path)
    reading = _Reading(document=document, values=Written.mark(document.values, document.folder))
    for text in overrides:
        reading.add_override(text)
    chosen = reading.choose(list(dict.fromkeys(variants or ())))
    plugins = reading.plugins() if plugins is None else plugins
    configs = [reading.config(variant, plugins) for variant in chosen]
    if reading.problems or plugins is None:
        raise ConfigError(reading.sorted_problems())
    return Runs(
        path=document.folder / path.name,
        plugins=plugins,
        configs=tuple(config for config in configs if config is not None),
    )


@frozen(kw_only=True)
class _Reading:
    """One reading of one file; `problems` grows, each line of it once, however many variants it is in."""

    document: Document
    values: dict[str, Any]
    overrides: list[Override] = field(factory=list)
    problems: dict[Problem, None] = field(factory=dict)

    def _add(self, *problems: Problem) -> None:
        self.problems.update(dict.fromkeys(problems))

    def _in_file(self, path: KeyPath, message: str) -> None:
        self._add(located(self.document, Origin(source="file", path=path), (), message))

    def sorted_problems(self) -> list[Problem]:
        """By line; those of `--set`, which have none, last."""
        return sorted(self.problems, key=lambda problem: (problem.line is None, problem.line or 0))

    def add_override(self, text: str) -> None:
        """Note a `--set`."""
        try:
            override = parse_override(text)
        except ConfigError as error:
            self._add(*error.problems)
            return
        match override.parts[0][0]:
            case "variants":
                self._add(override.problem("set the key itself, and choose the variant with --variant"))
            case "extends":
                self._add(override.problem(_NOT_IN_A_VARIANT["extends"]))
            case _:
                self.overrides.append(override)

    def choose(self, wanted: list[str]) -> list[str | None]:
        """The variants to read, None for a file without; the file's keys that are no part of a run are taken out."""
        if "extends" in self.values:
            del self.values["extends"]
            self._in_file(("extends",), "extends is not supported by this version: put those keys into this file")
        variants = self.values.pop("variants", None)
        if variants is None:
            if wanted:
                message = f"there is no variant {shown(wanted[0])}: {self.document.name} has no [variants]"
                self._add(Problem(source="--variant", key=wanted[0], message=message))
            return [None]
        if not isinstance(variants, dict) or not variants:
            self._in_file(("variants",), "must be tables, one for each variant: [variants.NAME]")
            return [None]
        good = {name: table for name, table in variants.items() if self._variant(name, table)}
        for name in wanted:
            if name not in variants:
                close = closest(name, variants)
                meant = "" if close is None else f", did you mean {close}?"
                message = (
                    f"there is no such variant{meant} (there are: {', '.join(map(dotted, ((n,) for n in variants)))})"
                )
                self._add(Problem(source="--variant", key=dotted((name,)), message=message))
        self.values["variants"] = good
        return [name for name in wanted or good if name in good]

    def _variant(self, name: str, table: Any) -> bool:
        """Whether a variant can be merged; what cannot be in it is taken out."""
        if not VARIANT_NAME.fullmatch(name):
            # It is read all the same: it may hold other mistakes.
            self._in_file(("variants", name), "a variant's name must be a lower-case letter, then any of a-z 0-9 _ -")
        if not isinstance(table, dict):
            self._in_file(("variants", name), f"must be a table of what differs in this variant, not {shown(table)}")
            return False
        for key in [key for key in table if key in _NOT_IN_A_VARIANT]:
            del table[key]
            self._in_file(("variants", name, key), f"does not belong in a variant: {_NOT_IN_A_VARIANT[key]}")
        return True

    def _layers(self, variant: str | None) -> Layers:
        layers = Layers(document=self.document)
        layers.merge({key: value for key, value in self.values.items() if key != "variants"})
        if variant is not None:
            layers.merge(self.values["variants"][variant], at=("variants", variant))
        self._add(*put_all(layers, self.overrides))
        return layers

    def plugins(self) -> Plugins | None:
        """The plugins, as the file's and the overrides' `[plugins]` want them; None where those are wrong."""
        layers = Layers(document=self.document)
        layers.merge({key: value for key, value in self.values.items() if key == "plugins"})
        put_all(layers, [override for override in self.overrides if override.parts[0][0] == "plugins"])
        try:
            config = structure(layers.values.get("plugins", {}), PluginsConfig)
        except Invalid:
            # Each variant's reading tells of it; nothing that the file may want disabled is imported meanwhile.
            return None
        return discover(disable=config.disable, prefer=config.prefer)

    def config(self, variant: str | None, plugins: Plugins | None) -> RunConfig | None:
        """One variant's configuration; None where it has problems, which are noted."""
        layers = self._layers(variant)
        try:
            config = build(layers.values, plugins)
        except Invalid as error:
            self._add(*(layers.problem(path, message) for path, message in error.findings))
            return None
        if variant is None or not VARIANT_NAME.fullmatch(variant):
            return config
        return evolve(config, name=f"{config.name}-{variant}")


def build(values: Mapping[str, Any], plugins: Plugins | None) -> RunConfig:
    """A configuration out of one merged tree; without plugins their options stay as they are.

    Raises:
        Invalid: with a finding for each thing that is wrong.
    """
    components = Components() if plugins is None else read_components(values, plugins)
    findings: list[Finding] = []
    try:
        config = structure(values, RunConfig)
    except Invalid as error:
        findings += error.findings
    findings += [finding for finding in components.findings if finding not in findings]
    if findings:
        raise Invalid(findings)
    return config if plugins is None else components.fill(config)


def to_plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as JSON and TOML can hold it, options included: TOML's key names; what is None is left out."""
    values: dict[str, Any] = plain(config)
    return values


def from_plain(values: Mapping[str, Any], plugins: Plugins) -> RunConfig:
    """The inverse of `to_plain`.

    Raises:
        ConfigError: the values are not those of a configuration, or a component is gone.
    """
    try:
        return build(values, plugins)
    except Invalid as error:
        problems = [
            Problem(source="resolved configuration", key=dotted(path), message=message)
            for path, message in error.findings
        ]
        raise ConfigError(problems) from error
