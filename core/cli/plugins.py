"""`modelwright plugins list`."""

from __future__ import annotations

import click

from modelwright.core.cli.common import json_option, print_json, print_table


@click.group()
def plugins() -> None:
    """List the installed plugins."""


@plugins.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all plugins, their components, and why a plugin cannot be used."""
    from modelwright.core.plugins import discover

    found = discover()
    if as_json:
        print_json(found.to_rows())
        return
    rows = [
        (
            plugin.plugin,
            plugin.origin,
            plugin.status,
            ", ".join(f"{spec.kind} {spec.name}" for spec in plugin.components),
        )
        for plugin in found.found
    ]
    print_table(("plugin", "package", "status", "components"), rows)
    for plugin in found.found:
        for problem in [*([plugin.error] if plugin.error else []), *found.conflicts(plugin)]:
            click.echo(f"{plugin.plugin} ({plugin.origin}): {problem}")
