"""From a URL to a registry, and from an address to a model version in it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence

from attrs import fields_dict

from modelwright.core.api.components import Registry, RegistrySpec
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError, UsageError
from modelwright.core.api.registry import Address, ModelVersion, parse_address
from modelwright.core.api.wording import closest, listed
from modelwright.core.plugins import Plugins

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def open_registry(url: str, plugins: Plugins) -> Registry:
    """Open the registry at `url` with the backend for its scheme. Nothing is created yet.

    Raises:
        UsageError: it is not a URL, no backend has its scheme, or the backend refuses it.
        MissingDependencyError: the backend needs a package that is not installed.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise UsageError(
            f"registry {url!r} is not a URL: expected SCHEME://…, such as sqlite:///registry.db "
            f"(available schemes: {', '.join(_schemes(plugins)) or 'none'})"
        )
    spec = plugins.registry_for(scheme[1].lower())
    if "url" not in fields_dict(spec.options):
        raise ModelwrightError(
            f"registry {spec.name!r} cannot be opened: the plugin's options {spec.options.__name__} have no field url"
        )
    try:
        options = spec.options(url=url)
    except (TypeError, ValueError) as error:
        raise UsageError(f"registry {url!r}: {error}") from error
    registry: Registry = spec.create(options)
    return registry


def _schemes(plugins: Plugins) -> list[str]:
    specs = (spec for plugin in plugins.found for spec in plugin.components if isinstance(spec, RegistrySpec))
    return sorted({scheme for spec in specs for scheme in spec.schemes})


def resolve(registry: Registry, address: str | Address) -> ModelVersion:
    """The model version at an address.

    Raises:
        UsageError: the text is not an address.
        ModelNotFoundError: there is none; the message lists what the registry has.
    """
    address = parse_address(address) if isinstance(address, str) else address
    try:
        if address.alias is not None:
            alias = registry.resolve(address.alias)
            return registry.get(alias.name, alias.version)
        assert address.name is not None
        return registry.get(address.name, address.version)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(_not_found(address, error, registry.find())) from error


@contextlib.contextmanager
def naming(url: str) -> Iterator[None]:
    """Add the registry's URL to "not found": the wrong registry is the likeliest reason."""
    try:
        yield
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}; registry: {url}") from error


def _not_found(address: Address, error: ModelNotFoundError, models: Sequence[ModelVersion]) -> str:
    names = sorted({model.name for model in models})
    aliases = {alias: f"@{alias}" for alias in sorted(alias for model in models for alias in model.aliases)}
    if not models:
        return f"there is no model {str(address)!r}: the registry is empty"
    if address.alias is not None:
        message = f"there is no alias '{address}'"
        message += _did_you_mean(address.alias, {name: name for name in names} | aliases)
        return f"{message} (aliases: {_listed(aliases.values())}; models: {_listed(names)})"
    assert address.name is not None
    versions = [model.version for model in models if model.name == address.name]
    if versions:
        return f"{error} (versions: {_ranges(versions)})"
    message = f"there is no model {address.name!r}"
    message += _did_you_mean(address.name, aliases | {name: name for name in names})
    return f"{message} (models: {_listed(names)}; aliases: {_listed(aliases.values())})"


def _did_you_mean(name: str, addresses: dict[str, str]) -> str:
    close = closest(name, addresses)
    return f", did you mean {addresses[close]!r}?" if close else ""


def _listed(names: Iterable[str]) -> str:
    return listed([*names], 20) or "none"


def _ranges(versions: Sequence[int]) -> str:
    """`[1, 2, 3, 5]` → `1-3, 5`."""
    spans: list[list[int]] = []
    for version in sorted(versions):
        if spans and version == spans[-1][-1] + 1:
            spans[-1][1:] = [version]
        else:
            spans.append([version])
    return ", ".join("-".join(map(str, span)) for span in spans)
