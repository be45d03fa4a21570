"""`modelwright models verify`."""

from __future__ import annotations

import sys

import click

from modelwright.core.cli.common import json_option, print_json, registry_option
from modelwright.core.cli.models.shared import found, opened


@click.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@registry_option
@json_option
def verify(addresses: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Read every file of the models again and compare it with its digest; without ADDRESS, of all models.

    Ends with exit code 1 if a file is missing, cut short or changed.
    """
    models, url = opened(registry)
    versions = found(models, url, addresses) if addresses else models.find()
    problems: dict[str, list[str]] = {}
    for version in versions:
        problems[version.address] = list(models.verify(version))
        if not as_json:
            _print(version.address, problems[version.address], len(version.files))
    wrong = [address for address, lines in problems.items() if lines]
    if as_json:
        print_json(
            [
                {"name": each.name, "version": each.version, "digest": each.digest, "problems": problems[each.address]}
                for each in versions
            ]
        )
    elif not versions:
        click.echo(f"There are no models in {url}")
    if wrong:
        click.echo(
            f"error: {len(wrong)} of {len(problems)} models in {url} {'is' if len(wrong) == 1 else 'are'} damaged: "
            "restore the files from a backup, or register or import the same models again",
            err=True,
        )
        sys.exit(1)


def _print(address: str, lines: list[str], files: int) -> None:
    click.echo(f"{click.style(address, bold=True)}   {'damaged' if lines else f'{files} files as they were'}")
    for line in lines:
        click.echo(f"  {line}")
