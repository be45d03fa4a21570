"""Files to `RunConfig`s and `EvalConfig`s: every layer, every variant, every mistake at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from attrs import evolve, field, frozen

from modelwright.core.config.components import Components, Root, eval_components, run_components
from modelwright.core.config.errors import ConfigError, Finding, Invalid, Problem, dotted
from modelwright.core.config.files import Document, Layer, Origin, located, read_chain
from modelwright.core.config.layers import (
    VARIANTS,
    Layers,
    Override,
    no_variants,
    parse_override,
    put_all,
    settle_variants,
    unknown_variant,
)
from modelwright.core.config.mistakes import within
from modelwright.core.config.paths import LONGEST_NAME
from modelwright.core.config.schema import VARIANT_NAME, EvalConfig, PluginsConfig, RunConfig
from modelwright.core.config.structure import plain, structure
from modelwright.core.plugins import Plugins, discover

if TYPE_CHECKING:
    from pathlib import Path

# Top-level keys that only a run file has.
_RUN_ONLY = frozenset({"model", "data", "train"})


@frozen(kw_only=True)
class Kind(Generic[Root]):
    """A kind of file.

    Attributes:
        root: the class of the whole file.
        components: looks up its components.
        needs: what an empty file lacks, for messages.
        variants: whether it may have `[variants]`.
    """

    root: type[Root]
    components: Callable[[Mapping[str, Any], Plugins], Components[Root]]
    needs: str
    variants: bool

    def build(self, values: Mapping[str, Any], plugins: Plugins | None) -> Root:
        """A configuration from a merged tree. Without plugins, the options of components stay plain tables.

        Raises:
            Invalid: with a finding for each thing that is wrong.
        """
        with within(self.root, "extends", *(["variants"] if self.variants else ())):
            return self._built(values, plugins)

    def _built(self, values: Mapping[str, Any], plugins: Plugins | None) -> Root:
        components = None if plugins is None else self.components(values, plugins)
        findings: list[Finding] = []
        try:
            config = structure(values if components is None else components.values, self.root)
        except Invalid as error:
            findings += error.findings
        findings += [one for one in (components.findings if components else ()) if one not in findings]
        if findings:
            raise Invalid(findings)
        return config if components is None else components.fill(config)


RUN: Kind[RunConfig] = Kind(
    root=RunConfig, components=run_components, needs="it needs name, [model], [data] and [train]", variants=True
)
EVAL: Kind[EvalConfig] = Kind(
    root=EvalConfig, components=eval_components, needs="it needs models and [[evaluate]]", variants=False
)


@frozen(kw_only=True)
class Runs:
    """A run file after reading.

    Attributes:
        path: the file, absolute.
        plugins: those that it was read with.
        configs: one per requested variant; a single one if the file has no variants.
    """

    path: Path
    plugins: Plugins
    configs: tuple[RunConfig, ...]


@frozen(kw_only=True)
class EvalFile:
    """An evaluation file after reading: its absolute path, the plugins that it was read with, and its content."""

    path: Path
    plugins: Plugins
    config: EvalConfig


def read_run(
    path: Path,
    *,
    variants: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
) -> Runs:
    """Read a run file.

    Args:
        path: the file, TOML or YAML.
        variants: names of variants; all by default.
        overrides: `K=V`, as given to `--set`.
        plugins: to look up components in; by default those installed, without those that `[plugins]` disables.

    Raises:
        ConfigError: with a line for each mistake.
    """
    read, plugins, configs = _read(path, RUN, variants or (), overrides, plugins)
    return Runs(path=read, plugins=plugins, configs=configs)


def read_eval(path: Path, *, overrides: Sequence[str] = (), plugins: Plugins | None = None) -> EvalFile:
    """Read an evaluation file; arguments and errors are those of `read_run`."""
    read, plugins, (config,) = _read(path, EVAL, (), overrides, plugins)
    return EvalFile(path=read, plugins=plugins, config=config)


def is_eval_file(path: Path) -> bool:
    """Whether a file is an evaluation file: it has the key `models`, or test sets and no table of a run.

    False for a file that cannot be read: reading it as a run file reports what is wrong with it.
    """
    try:
        layers = read_chain(path, needs="")
    except ConfigError:
        return False
    keys = {key for layer in layers for key in layer.values}
    return "models" in keys or ("evaluate" in keys and not keys & _RUN_ONLY)


def _read(
    path: Path, kind: Kind[Root], variants: Sequence[str], overrides: Sequence[str], plugins: Plugins | None
) -> tuple[Path, Plugins, tuple[Root, ...]]:
    reading = _Reading(kind=kind, files=read_chain(path, needs=kind.needs))
    for text in overrides:
        reading.add_override(text)
    names = reading.variants(list(dict.fromkeys(variants))) if kind.variants else [None]
    plugins = reading.plugins() if plugins is None else plugins
    configs = [reading.config(name, plugins) for name in names]
    if reading.problems or plugins is None:
        raise ConfigError(reading.sorted_problems())
    return reading.document.folder / path.name, plugins, tuple(config for config in configs if config is not None)


@frozen(kw_only=True)
class _Reading(Generic[Root]):
    """One reading of one file. It collects `problems`, each once, even if several variants share it."""

    kind: Kind[Root]
    files: tuple[Layer, ...]
    overrides: list[Override] = field(factory=list)
    problems: dict[Problem, None] = field(factory=dict)

    @property
    def document(self) -> Document:
        """The file itself."""
        return self.files[-1].document

    def _add(self, *problems: Problem) -> None:
        self.problems.update(dict.fromkeys(problems))

    def sorted_problems(self) -> list[Problem]:
        """Those of the file by line, then those of the files it extends, and those of `--set`, without a line, last."""
        order = {file.document.name: number for number, file in enumerate(reversed(self.files))}
        return sorted(self.problems, key=lambda one: (one.line is None, order.get(one.source, 0), one.line or 0))

    def add_override(self, text: str) -> None:
        """Add a `--set`."""
        try:
            override = parse_override(text)
        except ConfigError as error:
            self._add(*error.problems)
            return
        match override.parts[0][0]:
            case "variants" if self.kind.variants:
                self._add(override.problem("set the key itself and choose the variant with --variant"))
            case "extends":
                self._add(override.problem("cannot be set here: write it into the file"))
            case _:
                self.overrides.append(override)

    def variants(self, wanted: list[str]) -> list[str | None]:
        """The variants to read; [None] for a file without variants. Invalid ones are reported and left out."""
        given = [file for file in self.files if VARIANTS in file.values]
        if not given:
            self._add(*(no_variants(name, self.document.name) for name in wanted[:1]))
            return [None]
        named: dict[str, None] = {}
        for file in given:
            names, problems = settle_variants(file)
            named.update(dict.fromkeys(names))
            self._add(*problems)
        if not named:
            return [None]
        self._add(*(unknown_variant(name, named) for name in wanted if name not in named))
        good = dict.fromkeys(name for file in given for name in file.values[VARIANTS])
        return [name for name in wanted or good if name in good]

    def _layers(self, variant: str | None) -> Layers:
        layers = Layers(document=self.document)
        apart = VARIANTS if self.kind.variants else None
        for file in self.files:
            layers.merge({key: value for key, value in file.values.items() if key != apart}, file.document)
        if variant is not None:
            for file in self.files:
                layers.merge(file.values.get(VARIANTS, {}).get(variant, {}), file.document, at=(VARIANTS, variant))
        self._add(*put_all(layers, self.overrides))
        return layers

    def plugins(self) -> Plugins | None:
        """The plugins as configured by `[plugins]` of the files and overrides; None if that table is wrong."""
        layers = Layers(document=self.document)
        for file in self.files:
            layers.merge({key: value for key, value in file.values.items() if key == "plugins"}, file.document)
        put_all(layers, [override for override in self.overrides if override.parts[0][0] == "plugins"])
        try:
            config = structure(layers.values.get("plugins", {}), PluginsConfig)
        except Invalid:
            # Reading each variant reports it. Until then, no plugin is imported that the file may disable.
            return None
        return discover(disable=config.disable, prefer=config.prefer)

    def config(self, variant: str | None, plugins: Plugins | None) -> Root | None:
        """One variant's configuration; None if it has problems, which are recorded."""
        layers = self._layers(variant)
        try:
            config = self.kind.build(layers.values, plugins)
        except Invalid as error:
            self._add(*(layers.problem(path, message) for path, message in error.findings))
            return None
        if variant is None or not VARIANT_NAME.fullmatch(variant) or not isinstance(config, RunConfig):
            return config
        name = f"{config.name}-{variant}"
        if len(name) > LONGEST_NAME:
            message = f"the model's name {name[:40]}… would have {len(name)} characters, the limit is {LONGEST_NAME}"
            self._add(located(self._variants_origin(variant), (), message))
            return None
        return evolve(config, name=name)

    def _variants_origin(self, variant: str) -> Origin:
        file = next(file for file in reversed(self.files) if variant in file.values.get(VARIANTS, {}))
        return Origin(document=file.document, path=(VARIANTS, variant))


def to_plain(config: RunConfig | EvalConfig) -> dict[str, Any]:
    """A configuration, options included, as JSON and TOML can hold it: with TOML's key names, and without None."""
    values: dict[str, Any] = plain(config)
    return values


def from_plain(values: Mapping[str, Any], plugins: Plugins) -> RunConfig:
    """The inverse of `to_plain` for a run.

    Raises:
        ConfigError: the values are not a valid configuration, or a component is not installed.
    """
    return _from_plain(values, plugins, RUN)


def eval_from_plain(values: Mapping[str, Any], plugins: Plugins) -> EvalConfig:
    """As `from_plain`, for an evaluation."""
    return _from_plain(values, plugins, EVAL)


def _from_plain(values: Mapping[str, Any], plugins: Plugins, kind: Kind[Root]) -> Root:
    try:
        return kind.build(values, plugins)
    except Invalid as error:
        problems = [
            Problem(source="resolved configuration", key=dotted(path), message=message)
            for path, message in error.findings
        ]
        raise ConfigError(problems) from error
