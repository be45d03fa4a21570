"""`modelwright models card`."""

from __future__ import annotations

from pathlib import Path

import click

from modelwright.core.api.files import write_text
from modelwright.core.cli.common import registry_option
from modelwright.core.cli.models.shared import opened
from modelwright.core.registry import naming, resolve
from modelwright.core.registry.card import model_card


@click.command()
@click.argument("address")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: standard output.")
@registry_option
def card(address: str, output: Path | None, registry: str | None) -> None:
    """Write the card of the model at ADDRESS: Markdown, with the header of the Hugging Face hub."""
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    text = model_card(version)
    if output is None:
        click.echo(text, nl=False)
        return
    write_text(output, text)
    click.echo(f"wrote {output}")
