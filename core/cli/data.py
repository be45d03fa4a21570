"""`modelwright data show | stats`: what a run's training data came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelwright.core.cli.common import json_option, print_json, print_table

if TYPE_CHECKING:
    from modelwright.core.stages.prepare.preview import Look
    from modelwright.core.stages.prepare.statistics import Statistics

BAR = 30


@click.group()
def data() -> None:
    """Look at what a run's data came to.

    RUN is a run.toml, the name of a run (of a variant: NAME-VARIANT), or its folder. The run must be prepared.
    """


@data.command()
@click.argument("run", metavar="RUN")
@click.option("--variant", metavar="NAME", help="Of a run.toml with variants.")
@click.option(
    "--n", "count", type=click.IntRange(1, 10_000), metavar="N", default=5, show_default=True, help="How many."
)
@click.option("--skip", type=click.IntRange(min=0), metavar="N", default=0, help="Leave out so many before.")
@click.option("--holdout", is_flag=True, help="Of the rows that are held out.")
@click.option("--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="Write a page instead.")
@json_option
def show(run: str, variant: str | None, count: int, skip: int, holdout: bool, page: Path | None, as_json: bool) -> None:
    """Show rows as the model will see them, with the tokens that it learns.

    They are green on a terminal, and between ⟦ and ⟧ elsewhere.
    """
    from attrs import asdict

    from modelwright.core.api.errors import UsageError
    from modelwright.core.api.files import write_text
    from modelwright.core.cli.common import prepared_folder
    from modelwright.core.stages.prepare import preview as look

    folder = prepared_folder(run, variant)
    looks = look.look(folder, count, skip=skip, split=look.HOLDOUT if holdout else look.TRAIN)
    if page is not None:
        if page.is_dir():
            raise UsageError(f"--html {page}: it is a folder; name a file")
        write_text(page, look.page(f"{folder.parent.name}: {len(looks)} rows", looks))
        click.echo(f"wrote {page}")
    elif as_json:
        print_json([asdict(one) for one in looks])
    elif not looks:
        click.echo("There are no such rows.")
    else:
        _print_looks(looks)


@data.command()
@click.argument("run", metavar="RUN")
@click.option("--variant", metavar="NAME", help="Of a run.toml with variants.")
@json_option
def stats(run: str, variant: str | None, as_json: bool) -> None:
    """Count rows and tokens: lengths, sources, what is learnt, what was left out and why."""
    from attrs import asdict

    from modelwright.core.cli.common import prepared_folder
    from modelwright.core.stages.prepare.statistics import statistics

    found = statistics(prepared_folder(run, variant))
    if as_json:
        print_json(asdict(found))
    else:
        _print_statistics(found)


def _print_looks(looks: Sequence[Look]) -> None:
    from attrs import asdict
    from rich.console import Console

    from modelwright.core.cli.labels import example_text

    console = Console()
    for number, one in enumerate(looks):
        if number:
            console.print()
        console.print(example_text(asdict(one), coloured=console.is_terminal), soft_wrap=not console.is_terminal)


def _print_statistics(found: Statistics) -> None:
    from modelwright.core.cli.labels import label_shares

    report = found.report
    click.echo(f"{report['read']:,} rows read, {report['rows']:,} rows to train on, {report['tokens']:,} tokens")
    for name, n in report["recognised"].items():
        click.echo(f"recognised: {name} ({n:,} rows)")
    if report["packs"]:
        packs = report["packs"]
        click.echo(f"{packs['packs']:,} packs, {packs['filled']:.1%} of their places filled")
    print_table(
        ("tokens", "", "share"), [(name, f"{n:,}", _share(n, report["tokens"])) for name, n in label_shares(report)]
    )
    left = [(words, report[key]) for key, words in LEFT_OUT if report[key]]
    left += [(name, n) for name, n in report["removed"].items() if n]
    left += [(f"anomaly {name}", n) for name, n in report["anomalies"].items()]
    if left:
        print_table(("left out, or strange", "examples"), [(words, f"{n:,}") for words, n in left])
    if report["reasons"]:
        print_table(("rejected rows", ""), [(reason, f"{n:,}") for reason, n in report["reasons"].items()])
    print_table(("source", "examples"), [(source, f"{n:,}") for source, n in found.sources.items()])
    if found.lengths:
        click.echo("tokens of a row: " + ", ".join(f"{name} {n:,}" for name, n in found.lengths.items()))
        most = max(found.histogram.values())
        rows = [(f"to {edge:,}", f"{n:,}", "█" * round(BAR * n / most)) for edge, n in found.histogram.items()]
        print_table(("tokens", "rows", ""), rows)


LEFT_OUT = (
    ("rejected", "rows that cannot be read"),
    ("undrawn", "left out by their source's weight"),
    ("too_long", "longer than [data.tokens] max_length"),
    ("untrained", "of which nothing is learnt"),
    ("holdout_rows", "held out for the loss curve"),
)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
