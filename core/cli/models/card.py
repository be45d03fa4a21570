"""`modelwright models card`."""

from __future__ import annotations

from pathlib import Path

import click

from modelwright.core.api.errors import UsageError
from modelwright.core.api.files import failing_as, why_no_file, write_text
from modelwright.core.cli.common import DiskPath, registry_option
from modelwright.core.cli.models.shared import opened
from modelwright.core.registry import naming, resolve
from modelwright.core.registry.card import model_card


@click.command()
@click.argument("address")
@click.option("--output", type=DiskPath(), metavar="FILE", help="Default: standard output.")
@registry_option
def card(address: str, output: Path | None, registry: str | None) -> None:
    """Write the card of the model at ADDRESS: Markdown, with the header of the Hugging Face hub."""
    if output is not None and (why := why_no_file(output)):
        raise UsageError(f"{output} {why}: give a file to write, or no --output for standard output")
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    text = model_card(version)
    if output is None:
        click.echo(text, nl=False)
        return
    with failing_as(f"{output} cannot be written"):
        write_text(output, text)
    click.echo(f"wrote {output}")
