"""`modelwright models gc`."""

from __future__ import annotations

import click
from attrs import asdict

from modelwright.core.cli.common import json_option, print_json, registry_option, size_text
from modelwright.core.cli.models.shared import opened


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say how much could be freed.")
@registry_option
@json_option
def gc(dry_run: bool, registry: str | None, as_json: bool) -> None:
    """Free the files that no model needs any more: those of deleted ones, and of registrations that were killed."""
    models, url = opened(registry)
    freed = models.collect(dry_run=dry_run)
    if as_json:
        print_json({**asdict(freed), "dry_run": dry_run})
        return
    word = "would be freed" if dry_run else "freed"
    files = "1 file" if freed.contents == 1 else f"{freed.contents} files"
    click.echo(f"{files} ({size_text(freed.size)}) {word} in {url}")
