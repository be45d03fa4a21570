"""`modelwright models merge`."""

from __future__ import annotations

import click
from attrs import asdict

from modelwright.core.cli.common import json_option, print_json, registry_option
from modelwright.core.cli.models.shared import opened, summary
from modelwright.core.models.adapters import base_name
from modelwright.core.models.merge import merge as merge_adapter
from modelwright.core.registry import naming, resolve


@click.command()
@click.argument("address")
@click.option("--name", metavar="NAME", help="The whole model's name; default: the adapter's and -merged.")
@registry_option
@json_option
def merge(address: str, name: str | None, registry: str | None, as_json: bool) -> None:
    """Merge the adapter at ADDRESS into its base, and register the whole model.

    Nothing is registered unless its logits are those of base and adapter, but for rounding. The same adapter again
    gives the version that is there.
    """
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    done = merge_adapter(models, version, name)
    compared = done.compared
    if as_json:
        table = compared and {**asdict(compared), "allowed": compared.allowed}
        print_json({**summary(done.version), "added": compared is not None, "compared": table})
        return
    word = "there already:" if compared is None else f"merged {version.address} into its base {base_name(version)}:"
    click.echo(f"{word} {click.style(done.version.address, bold=True)} (digest {done.version.digest})")
    if compared is not None:
        click.echo(
            f"its logits differ by {compared.difference:.1g} at most ({compared.allowed:.1g} would be rounding); the "
            f"adapter moves them by up to {compared.moved:.2g}"
        )
