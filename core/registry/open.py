"""From a URL to a registry."""

from __future__ import annotations

import re

from attrs import fields_dict

from modelwright.core.api.components import Registry, RegistrySpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.plugins import Plugins

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def open_registry(url: str, plugins: Plugins) -> Registry:
    """The registry at `url`, by the backend that serves the URL's scheme. Nothing is created yet.

    Raises:
        UsageError: it is no URL, nothing serves its scheme, or the backend refuses it.
        MissingDependencyError: the backend needs a package that is not installed.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise UsageError(
            f"registry {url!r} is no URL: expected SCHEME://…, such as sqlite:///registry.db "
            f"(schemes there are: {', '.join(_schemes(plugins)) or 'none'})"
        )
    spec = plugins.registry_for(scheme[1].lower())
    if "url" not in fields_dict(spec.options):
        raise ModelwrightError(
            f"registry {spec.name!r} cannot be opened: its options {spec.options.__name__} have no field url"
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
