"""`modelwright models tag`."""

from __future__ import annotations

from collections.abc import Iterable

import click

from modelwright.core.api.errors import UsageError
from modelwright.core.api.registry import check_tags
from modelwright.core.cli.common import json_option, print_json, registry_option
from modelwright.core.cli.models.shared import opened, print_pairs, text
from modelwright.core.registry import naming, resolve


@click.command()
@click.argument("address")
@click.argument("tags", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="Take a tag away; may repeat.")
@registry_option
@json_option
def tag(address: str, tags: tuple[str, ...], removed: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Set tags of the model at ADDRESS, or take some away; without any, show them."""
    changes = _changes(tags, removed)
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    missing = sorted(set(removed) - version.model.tags.keys())
    if missing:
        there = ", ".join(version.model.tags) or "none"
        raise UsageError(f"{version.address} has no tag {missing[0]!r} to remove (tags: {there})")
    if changes:
        version = models.set_tags(version.name, version.version, changes)
    if as_json:
        print_json({"name": version.name, "version": version.version, "tags": dict(version.model.tags)})
        return
    click.echo(click.style(version.address, bold=True) + ("" if version.model.tags else " has no tags"))
    print_pairs({key: text(value) for key, value in version.model.tags.items()})


def _changes(tags: Iterable[str], removed: Iterable[str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {}
    for each in tags:
        key, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"{each!r} is no tag: expected KEY=VALUE, such as team=nlp (--remove KEY takes one away)")
        if key in changes:
            raise UsageError(f"tag {key!r} is given twice")
        changes[key] = value
    for key in removed:
        if key in changes:
            raise UsageError(f"tag {key!r} is both set and removed")
        changes[key] = None
    check_tags(changes)
    return changes
