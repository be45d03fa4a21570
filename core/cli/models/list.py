"""`modelwright models list`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from modelwright.core.api.registry import ModelVersion
from modelwright.core.cli.common import json_option, print_json, print_table, registry_option
from modelwright.core.cli.models.shared import alias_text, figure, metric_pairs, opened, print_pairs, summary, text


@click.command("list")
@registry_option
@json_option
def list_(registry: str | None, as_json: bool) -> None:
    """List every version with its aliases and metrics."""
    models, url = opened(registry)
    versions = models.find()
    if as_json:
        print_json([summary(version) for version in versions])
    elif versions:
        _print_list(versions)
    elif models.events():
        click.echo(f"No models any more in {url}; its history is kept")
    else:
        # Whatever happened in a registry is in its history.
        click.echo(f"There is no registry yet at {url}; the first model that is registered there makes it")


def _print_list(versions: Sequence[ModelVersion]) -> None:
    """A table with a column for each metric; where that is wider than the terminal, a block for each model."""
    from rich.console import Console

    measured = sorted(
        {(suite, metric) for version in versions for suite, figures in version.metrics.items() for metric in figures}
    )
    columns = ["model", "aliases", *(f"{text(suite)}\n{text(metric)}" for suite, metric in measured), "created (UTC)"]
    rows = [
        [
            version.address,
            " ".join(f"@{alias}" for alias in version.aliases),
            *(figure(version.metrics.get(suite, {}).get(metric)) for suite, metric in measured),
            f"{version.created:%Y-%m-%d %H:%M}",
        ]
        for version in versions
    ]
    console = Console()
    if not console.is_terminal or _width(columns, rows) <= console.width:
        print_table(columns, rows)
        return
    for version in versions:
        _print_block(version, f"{version.created:%Y-%m-%d %H:%M} UTC")


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The characters of a table's widest line, three of them between columns."""
    lines = [[max(map(len, column.split("\n"))) for column in columns], *([len(cell) for cell in row] for row in rows)]
    return sum(max(widths) + 3 for widths in zip(*lines, strict=True))


def _print_block(version: ModelVersion, note: str) -> None:
    names = [alias_text(alias) for alias in version.aliases]
    click.echo("  ".join([click.style(version.address, bold=True), *names, click.style(note, dim=True)]))
    print_pairs(metric_pairs(version))
    click.echo()
