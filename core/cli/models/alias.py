"""`modelwright models alias`."""

from __future__ import annotations

import click
from attrs import asdict

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelNotFoundError
from modelwright.core.api.registry import Alias, ModelVersion, check_alias
from modelwright.core.cli.common import json_option, print_json, print_table, registry_option
from modelwright.core.cli.models.shared import alias_text, opened
from modelwright.core.registry import naming, resolve


@click.command()
@click.argument("alias", required=False)
@click.argument("address", required=False)
@registry_option
@json_option
def alias(alias: str | None, address: str | None, registry: str | None, as_json: bool) -> None:
    """Point ALIAS to the model at ADDRESS. Without ADDRESS show where it points; without both list all aliases."""
    models, url = opened(registry)
    if alias is None:
        _list_aliases(models, url, as_json=as_json)
        return
    name = check_alias(alias.removeprefix("@"))
    if address is None:
        with naming(url):
            target = resolve(models, f"@{name}")
        found = models.resolve(name)
        if as_json:
            print_json(asdict(found))
        else:
            click.echo(f"{alias_text(name)} → {target.address}")
        return
    with naming(url):
        target = resolve(models, address)
    move_alias(models, name, target, as_json=as_json)


def move_alias(registry: Registry, alias: str, target: ModelVersion, *, as_json: bool, quiet: bool = False) -> None:
    """Point an alias, and say from where to where; with `quiet`, do not."""
    try:
        before: Alias | None = registry.resolve(alias)
    except ModelNotFoundError:
        before = None
    # With the generation, so that what is printed as the old place is where the alias moved from.
    after = registry.set_alias(alias, target.name, target.version, expected=before.generation if before else 0)
    previous = f"{before.name}@{before.version}" if before else None
    if quiet:
        return
    if as_json:
        print_json({**asdict(after), "previous": previous})
    elif previous == target.address:
        click.echo(f"{alias_text(alias)} points to {target.address} already")
    else:
        click.echo(f"{alias_text(alias)}: {previous or '(new)'} → {click.style(target.address, bold=True)}")


def _list_aliases(registry: Registry, url: str, *, as_json: bool) -> None:
    found = [registry.resolve(alias) for version in registry.find() for alias in version.aliases]
    found.sort(key=lambda alias: alias.alias)
    if as_json:
        print_json([asdict(alias) for alias in found])
    elif found:
        rows = [(f"@{alias.alias}", f"{alias.name}@{alias.version}", str(alias.generation)) for alias in found]
        print_table(("alias", "model", "generation"), rows)
    else:
        click.echo(f"No aliases yet in {url}; set one: modelwright models alias ALIAS NAME")
