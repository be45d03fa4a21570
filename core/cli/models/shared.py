"""Shared by the commands about models: opening the registry, and formatting values for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from attrs import asdict

from modelwright.core import home
from modelwright.core.api.components import Registry
from modelwright.core.api.records import Figure
from modelwright.core.api.registry import ModelVersion
from modelwright.core.cli.common import figure_text
from modelwright.core.plugins import Plugins, discover
from modelwright.core.registry import naming, open_registry, resolve


def opened(url: str | None, plugins: Plugins | None = None) -> tuple[Registry, str]:
    """The registry of a URL, or the default one, and its URL."""
    url = home.registry_url(url)
    return open_registry(url, plugins or discover()), url


def found(registry: Registry, url: str, addresses: tuple[str, ...]) -> list[ModelVersion]:
    """The models at these addresses, in order and without duplicates.

    Raises:
        UsageError: a text is not an address.
        ModelNotFoundError: there is no model at one of them.
    """
    with naming(url):
        versions = [resolve(registry, address) for address in addresses]
    return list({version.address: version for version in versions}.values())


def summary(version: ModelVersion) -> dict[str, Any]:
    """A model as `models list --json` prints it."""
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "aliases": list(version.aliases),
        "tags": dict(version.model.tags),
        "metrics": {
            suite: {metric: asdict(value) for metric, value in figures.items()}
            for suite, figures in version.metrics.items()
        },
    }


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Print keys and values in two columns."""
    shown = {text(key): value for key, value in pairs.items()}
    width = max(map(len, shown), default=0)
    for key, value in shown.items():
        click.echo(f"  {key:<{width}}   {value}")


def metric_pairs(version: ModelVersion) -> dict[str, str]:
    """The figure of each `suite.metric`, for people."""
    return {
        f"{suite}.{metric}": f"{figure(value)}   n = {value.n}"
        for suite, figures in version.metrics.items()
        for metric, value in figures.items()
    }


def text(value: Any) -> str:
    """A string as it is, unless it would break the line or command the terminal; anything else as JSON."""
    if isinstance(value, str) and value and value.isprintable():
        return value
    # JSON escapes the first 32 control characters only.
    return "".join(
        each if each.isprintable() else json.dumps(each)[1:-1] for each in json.dumps(value, ensure_ascii=False)
    )


def figure(value: Figure | None) -> str:
    """A figure with its interval, or a dash for None."""
    return "–" if value is None else figure_text(value.value, value.low, value.high)


def short(digest: str) -> str:
    """The beginning of a sha256, which is enough to compare two."""
    return f"sha256 {text(digest[:12])}…"


def alias_text(alias: str) -> str:
    """`@ALIAS`, colored on a terminal."""
    return click.style(f"@{alias}", fg="cyan")
