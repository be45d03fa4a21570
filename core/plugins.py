"""Find plugins, isolate the broken, settle names, list them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, Literal, TypeVar

import pluggy
from attrs import field, frozen

from modelwright.core.api import hooks
from modelwright.core.api.components import (
    API_VERSION,
    ComponentSpec,
    EngineSpec,
    FormatSpec,
    MetricSpec,
    RegistrySpec,
    TrainerSpec,
)
from modelwright.core.api.errors import UsageError

GROUP = hooks.PROJECT
DISABLE = "MODELWRIGHT_DISABLE_PLUGINS"
STRICT = "MODELWRIGHT_STRICT_PLUGINS"

Spec = TypeVar("Spec", bound=ComponentSpec)

# Which descriptor each hook gives.
_HOOKS: dict[str, type[ComponentSpec]] = {
    "modelwright_formats": FormatSpec,
    "modelwright_trainers": TrainerSpec,
    "modelwright_metrics": MetricSpec,
    "modelwright_registries": RegistrySpec,
    "modelwright_engines": EngineSpec,
}


class PluginError(Exception):
    """A plugin cannot be used; the message says why."""


@frozen(kw_only=True)
class Plugin:
    """What became of one entry point.

    Attributes:
        plugin: the entry point's name.
        distribution: the package that it came with.
        version: that package's version.
        status: whether its components can be used.
        error: why not, for a failed one.
        components: its descriptors.
    """

    plugin: str
    distribution: str
    version: str
    status: Literal["loaded", "failed", "disabled"]
    error: str | None = None
    components: tuple[ComponentSpec, ...] = ()

    @property
    def origin(self) -> str:
        """The package and its version, for messages."""
        return f"{self.distribution} {self.version}"


@frozen(kw_only=True)
class Plugins:
    """Every plugin that was found, and the way from a name to its descriptor."""

    found: tuple[Plugin, ...]
    prefer: Mapping[str, str] = field(factory=dict)

    def _providers(self, kind: str) -> dict[str, list[tuple[Plugin, ComponentSpec]]]:
        providers: dict[str, list[tuple[Plugin, ComponentSpec]]] = {}
        for plugin in self.found:
            for spec in plugin.components:
                if spec.kind == kind:
                    providers.setdefault(spec.name, []).append((plugin, spec))
        return providers

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted."""
        return sorted(self._providers(kind))

    def get(self, spec_type: type[Spec], name: str) -> Spec:
        """The descriptor that `name` stands for.

        Raises:
            UsageError: nothing has that name, or two packages have and `[plugins.prefer]` does not settle it.
        """
        spec = self._settle(spec_type.kind, name)
        assert isinstance(spec, spec_type)
        return spec

    def _settle(self, kind: str, name: str) -> ComponentSpec:
        providers = self._providers(kind).get(name, [])
        if not providers:
            raise UsageError(self._unknown(kind, name))
        if len(providers) == 1:
            return providers[0][1]
        preferred = self.prefer.get(f"{kind}.{name}")
        chosen = [spec for plugin, spec in providers if plugin.distribution == preferred]
        if len(chosen) == 1:
            return chosen[0]
        origins = " and ".join(plugin.origin for plugin, _ in providers)
        if preferred is not None:
            raise UsageError(
                f"{kind} {name!r}: {preferred} is preferred under [plugins.prefer], but only {origins} have it"
            )
        raise UsageError(
            f"{kind} {name!r} is provided by {origins}: choose one with "
            f'[plugins.prefer] "{kind}.{name}" = "{providers[0][0].distribution}" in the configuration, '
            f"or disable the other one: MODELWRIGHT_DISABLE_PLUGINS={providers[-1][0].plugin}"
        )

    def _unknown(self, kind: str, name: str) -> str:
        names = self.names(kind)
        close = difflib.get_close_matches(name, names, n=1)
        message = f"there is no {kind} {name!r}"
        if close:
            message += f", did you mean {close[0]!r}?"
        message += f" (there are: {', '.join(names) or 'none'})"
        for status in ("failed", "disabled"):
            owners = [f"{plugin.plugin!r} of {plugin.origin}" for plugin in self.found if plugin.status == status]
            if owners:
                message += f"; {status}, and may own it: {', '.join(owners)} (see modelwright plugins list)"
        return message

    def origin(self, spec: ComponentSpec) -> str:
        """The package and version that a descriptor came with, for fingerprints."""
        return next(plugin.origin for plugin in self.found if any(one is spec for one in plugin.components))

    def registry_for(self, scheme: str) -> RegistrySpec:
        """The registry backend that serves URLs of `scheme`."""
        specs = [
            self.get(RegistrySpec, name)
            for name, providers in sorted(self._providers("registry").items())
            if any(isinstance(spec, RegistrySpec) and scheme in spec.schemes for _, spec in providers)
        ]
        if len(specs) == 1:
            return specs[0]
        if specs:
            names = " and ".join(repr(spec.name) for spec in specs)
            raise UsageError(f"registry scheme {scheme!r} is served by {names}: disable one under [plugins]")
        schemes = sorted(
            scheme
            for providers in self._providers("registry").values()
            for _, spec in providers
            if isinstance(spec, RegistrySpec)
            for scheme in spec.schemes
        )
        raise UsageError(f"no registry backend serves {scheme!r} URLs (there are: {', '.join(schemes) or 'none'})")

    def conflicts(self, plugin: Plugin) -> list[str]:
        """The names of `plugin` that another one has too, as `kind.name: also from DISTRIBUTION VERSION`."""
        return [
            f"{spec.kind}.{spec.name}: also from {other.origin}"
            for spec in plugin.components
            for other, _ in self._providers(spec.kind)[spec.name]
            if other is not plugin
        ]

    def to_rows(self) -> list[dict[str, Any]]:
        """What `modelwright plugins list --json` prints."""
        return [
            {
                "plugin": plugin.plugin,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "status": plugin.status,
                "error": plugin.error,
                "conflicts": self.conflicts(plugin),
                "components": [{"kind": spec.kind, "name": spec.name} for spec in plugin.components],
            }
            for plugin in self.found
        ]


def discover(
    *, disable: Collection[str] = (), prefer: Mapping[str, str] | None = None, strict: bool | None = None
) -> Plugins:
    """Load every plugin that is installed.

    Args:
        disable: entry-point or distribution names to skip before import; `MODELWRIGHT_DISABLE_PLUGINS` (names with
            commas between) adds to it.
        prefer: `{"metric.exact_match": "distribution"}` where two packages share a name.
        strict: raise a plugin's own error instead of recording it; default: `MODELWRIGHT_STRICT_PLUGINS=1`.
    """
    named = (*disable, *os.environ.get(DISABLE, "").split(","))
    skipped = {_normalised(name) for name in named if name.strip()}
    strict = os.environ.get(STRICT) == "1" if strict is None else strict
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    found = [_load(manager, point, skipped=skipped, strict=strict) for point in _entry_points()]
    return Plugins(found=tuple(found), prefer=dict(prefer or {}))


def _normalised(name: str) -> str:
    """The form in which package names are compared: https://peps.python.org/pep-0503/#normalized-names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _entry_points() -> list[metadata.EntryPoint]:
    def order(point: metadata.EntryPoint) -> tuple[str, str]:
        return (point.dist.name if point.dist else "", point.name)

    return sorted(metadata.entry_points(group=GROUP), key=order)


def _load(
    manager: pluggy.PluginManager, point: metadata.EntryPoint, *, skipped: Collection[str], strict: bool
) -> Plugin:
    distribution, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")
    if {_normalised(point.name), _normalised(distribution)} & set(skipped):
        return Plugin(plugin=point.name, distribution=distribution, version=version, status="disabled")
    key = f"{distribution}:{point.name}"
    try:
        components = _register(manager, point.load(), key)
    except (Exception, SystemExit) as error:  # a plugin that calls sys.exit() ends itself, not the program
        if strict:
            raise
        if manager.has_plugin(key):
            manager.unregister(name=key)
        # attrs' validators put the attribute and its class behind the sentence.
        said = error.args[0] if error.args and isinstance(error, ValueError | TypeError) else error
        text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {said}"
        return Plugin(
            plugin=point.name,
            distribution=distribution,
            version=version,
            status="failed",
            error=f"{' '.join(text.split())} (entry point {point.value!r})",
        )
    return Plugin(
        plugin=point.name, distribution=distribution, version=version, status="loaded", components=tuple(components)
    )


def _register(manager: pluggy.PluginManager, module: Any, key: str) -> list[ComponentSpec]:
    manager.register(module, name=key)
    components: list[ComponentSpec] = []
    for caller in manager.get_hookcallers(module) or ():
        spec_type = _HOOKS.get(caller.name)
        if spec_type is None:
            close = difflib.get_close_matches(caller.name, _HOOKS, n=1)
            hint = f", did you mean {close[0]}?" if close else f" (there are: {', '.join(_HOOKS)})"
            raise PluginError(f"there is no hook {caller.name}{hint}")
        for implementation in caller.get_hookimpls():
            if implementation.plugin is module:
                components += _checked(caller.name, spec_type, implementation.function())
    if not components:
        raise PluginError(f"it implements none of the hooks {', '.join(_HOOKS)}, or they give nothing")
    return components


def _checked(hook: str, spec_type: type[ComponentSpec], result: Any) -> Iterator[ComponentSpec]:
    if not isinstance(result, Iterable) or isinstance(result, str | bytes):
        raise PluginError(f"{hook} must give an iterable of {spec_type.__name__}, not {type(result).__name__}")
    names: set[str] = set()
    for spec in result:
        if type(spec) is not spec_type:
            raise PluginError(f"{hook} must give {spec_type.__name__}, not {type(spec).__name__}: {spec!r:.100}")
        if spec.api != API_VERSION:
            raise PluginError(
                f"{hook}: {spec.kind} {spec.name!r} is written for version {spec.api} of the plugin contract, "
                f"and this is version {API_VERSION}: install a matching release of it"
            )
        if spec.name in names:
            raise PluginError(f"{hook} gives the {spec.kind} {spec.name!r} twice")
        names.add(spec.name)
        yield spec
