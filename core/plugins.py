"""Find the installed plugins, isolate broken ones, resolve names to components, and list them all."""

from __future__ import annotations

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
from modelwright.core.api.wording import closest, one_line

GROUP = hooks.PROJECT
DISABLE = "MODELWRIGHT_DISABLE_PLUGINS"
STRICT = "MODELWRIGHT_STRICT_PLUGINS"

Spec = TypeVar("Spec", bound=ComponentSpec)

# The descriptor that each hook returns.
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
    """One entry point after loading.

    Attributes:
        plugin: the entry point's name.
        distribution: the package that it belongs to.
        version: that package's version.
        status: whether its components can be used.
        error: why they cannot, if it failed.
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
    """All installed plugins; resolves names to descriptors."""

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
        """The descriptor called `name`.

        Raises:
            UsageError: no component has that name, or those of two packages do and `[plugins.prefer]` chooses neither.
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
                f"{kind} {name!r}: [plugins.prefer] names {preferred}, but it is provided only by {origins}"
            )
        raise UsageError(
            f"{kind} {name!r} is provided by {origins}: choose one with "
            f'[plugins.prefer] "{kind}.{name}" = "{providers[0][0].distribution}" in the configuration, '
            f"or disable the other with MODELWRIGHT_DISABLE_PLUGINS={providers[-1][0].plugin}"
        )

    def _unknown(self, kind: str, name: str) -> str:
        names = self.names(kind)
        close = closest(name, names)
        message = f"there is no {kind} {name!r}"
        if close is not None:
            message += f", did you mean {close!r}?"
        message += f" (there are: {', '.join(names) or 'none'})"
        for status in ("failed", "disabled"):
            owners = [f"{plugin.plugin!r} of {plugin.origin}" for plugin in self.found if plugin.status == status]
            if owners:
                message += f"; it may be in a {status} plugin: {', '.join(owners)} (see modelwright plugins list)"
        return message

    def origin(self, spec: ComponentSpec) -> str:
        """The package and version that a descriptor comes from, for fingerprints."""
        return next(plugin.origin for plugin in self.found if any(one is spec for one in plugin.components))

    def registry_for(self, scheme: str) -> RegistrySpec:
        """The registry backend for URLs of `scheme`.

        Raises:
            UsageError: no backend serves the scheme, or several do.
        """
        specs = [
            self.get(RegistrySpec, name)
            for name, providers in sorted(self._providers("registry").items())
            if any(isinstance(spec, RegistrySpec) and scheme in spec.schemes for _, spec in providers)
        ]
        if len(specs) == 1:
            return specs[0]
        if specs:
            names = " and ".join(repr(spec.name) for spec in specs)
            raise UsageError(f"registry URLs of {scheme!r} are served by {names}: disable one with [plugins] disable")
        schemes = sorted(
            scheme
            for providers in self._providers("registry").values()
            for _, spec in providers
            if isinstance(spec, RegistrySpec)
            for scheme in spec.schemes
        )
        raise UsageError(f"no registry backend serves {scheme!r} URLs (there are: {', '.join(schemes) or 'none'})")

    def conflicts(self, plugin: Plugin) -> list[str]:
        """The names that `plugin` shares with another, as `kind.name: also from DISTRIBUTION VERSION`."""
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
    """Load all installed plugins.

    Args:
        disable: names of entry points or distributions to skip without importing them;
            `MODELWRIGHT_DISABLE_PLUGINS` (separated by commas) adds more.
        prefer: the distribution to use if two share a name: `{"metric.exact_match": "distribution"}`.
        strict: raise a plugin's own error instead of recording it; default: whether
            `MODELWRIGHT_STRICT_PLUGINS=1` is set.
    """
    named = (*disable, *os.environ.get(DISABLE, "").split(","))
    skipped = {_normalized(name) for name in named if name.strip()}
    strict = os.environ.get(STRICT) == "1" if strict is None else strict
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    found = [_load(manager, point, skipped=skipped, strict=strict) for point in _entry_points()]
    return Plugins(found=tuple(found), prefer=dict(prefer or {}))


def _normalized(name: str) -> str:
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
    if {_normalized(point.name), _normalized(distribution)} & set(skipped):
        return Plugin(plugin=point.name, distribution=distribution, version=version, status="disabled")
    key = f"{distribution}:{point.name}"
    try:
        components = _register(manager, point.load(), key)
    except (Exception, SystemExit) as error:  # a plugin that calls sys.exit() must not end the program
        if strict:
            raise
        if manager.has_plugin(key):
            manager.unregister(name=key)
        # attrs' validators append the attribute and its class as more arguments.
        said = error.args[0] if error.args and isinstance(error, ValueError | TypeError) else error
        text = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {said}"
        return Plugin(
            plugin=point.name,
            distribution=distribution,
            version=version,
            status="failed",
            error=f"{one_line(text)} (entry point {point.value!r})",
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
            close = closest(caller.name, _HOOKS)
            hint = f", did you mean {close}?" if close else f" (there are: {', '.join(_HOOKS)})"
            raise PluginError(f"there is no hook {caller.name}{hint}")
        for implementation in caller.get_hookimpls():
            if implementation.plugin is module:
                components += _checked(caller.name, spec_type, implementation.function())
    if not components:
        raise PluginError(f"it provides no components: implement one of the hooks {', '.join(_HOOKS)}")
    return components


def _checked(hook: str, spec_type: type[ComponentSpec], result: Any) -> Iterator[ComponentSpec]:
    if not isinstance(result, Iterable) or isinstance(result, str | bytes):
        raise PluginError(f"{hook} must return an iterable of {spec_type.__name__}, not {type(result).__name__}")
    names: set[str] = set()
    for spec in result:
        if type(spec) is not spec_type:
            raise PluginError(f"{hook} must return {spec_type.__name__}, not {type(spec).__name__}: {spec!r:.100}")
        if spec.api != API_VERSION:
            raise PluginError(
                f"{hook}: {spec.kind} {spec.name!r} is written for version {spec.api} of the plugin contract, "
                f"but this is version {API_VERSION}: install a matching release of the plugin"
            )
        if spec.name in names:
            raise PluginError(f"{hook} returns the {spec.kind} {spec.name!r} twice")
        names.add(spec.name)
        yield spec
