"""`modelwright models show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from attrs import asdict

from modelwright.core.api.registry import ModelVersion
from modelwright.core.cli.common import json_option, print_json, registry_option, size_text
from modelwright.core.cli.models.shared import (
    alias_text,
    metric_pairs,
    opened,
    print_pairs,
    short,
    summary,
    text,
)
from modelwright.core.models.adapters import base_name
from modelwright.core.registry import naming, resolve
from modelwright.core.registry.environment import PACKAGE, TELLING
from modelwright.core.registry.flat import flat


@click.command()
@click.argument("address")
@registry_option
@json_option
def show(address: str, registry: str | None, as_json: bool) -> None:
    """Show all that is known of one model.

    ADDRESS is NAME (its newest version), NAME@3 or @ALIAS.
    """
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    if as_json:
        print_json(_everything(version))
    else:
        _print_version(version)


def _everything(version: ModelVersion) -> dict[str, Any]:
    model = version.model
    return {
        **summary(version),
        "created": version.created.isoformat(),
        "fingerprint": model.fingerprint,
        "base": model.base,
        "parent": model.parent,
        "adapter": version.is_adapter,
        "code_version": model.code_version,
        "files": [asdict(file) for file in version.files],
        "data": dict(model.data),
        "training": dict(model.training),
        "environment": dict(model.environment),
        "config": dict(model.config),
    }


def _print_version(version: ModelVersion) -> None:
    model = version.model
    names = [alias_text(alias) for alias in version.aliases]
    click.echo("  ".join([click.style(version.address, bold=True), *names]))
    tags = ", ".join(f"{key}={text(value)}" for key, value in model.tags.items())
    facts = {
        "created": f"{version.created:%Y-%m-%d %H:%M:%S} UTC",
        "digest": version.digest,
        "adapter of": base_name(version) if version.is_adapter else None,
        "base": model.base,
        "parent": model.parent,
        "made by": f"modelwright {model.code_version}" if model.code_version else None,
        "tags": tags,
    }
    print_pairs({key: text(value) for key, value in facts.items() if value})
    sections = {
        "metrics": metric_pairs(version),
        "training": _shown(model.training),
        "files": {file.path: f"{size_text(file.size):>9}   {short(file.sha256)}" for file in version.files},
        "data": {path: short(digest) for path, digest in model.data.items()},
        "config": _shown(model.config),
        "environment": _environment(model.environment),
    }
    for title, pairs in sections.items():
        if pairs:
            click.echo(f"\n{click.style(title, bold=True)}")
            print_pairs(pairs)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    packages = {key.removeprefix(PACKAGE): value for key, value in environment.items() if key.startswith(PACKAGE)}
    pairs = {key: value for key, value in environment.items() if not key.startswith(PACKAGE)}
    pairs |= {name: packages[name] for name in TELLING if name in packages}
    others = len(packages.keys() - set(TELLING))
    pairs = {key: text(value) for key, value in pairs.items()}
    return pairs | ({f"{others} more packages": "--json shows them"} if others else {})


def _shown(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested tables as dotted keys; what is null is left out."""
    return {key: text(value) for key, value in flat(values).items() if value is not None}
