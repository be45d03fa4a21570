"""`modelwright data show | stats`: look at the prepared training data of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelwright.core.cli.common import json_option, print_json, print_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from modelwright.core.stages.prepare.preview import PreviewRow, Statistics

BAR = 30


@click.group()
def data() -> None:
    """Look at the prepared training data of a run.

    RUN is a run.toml, the name of a run (for a variant: NAME-VARIANT), or its folder. Run `modelwright prepare` first.
    """


@data.command()
@click.argument("run", metavar="RUN")
@click.option("--variant", metavar="NAME", help="Variant of the run.toml, if it has several.")
@click.option(
    "--n",
    "count",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=5,
    show_default=True,
    help="Maximum number of rows to show.",
)
@click.option("--skip", type=click.IntRange(min=0), metavar="N", default=0, help="Number of rows to skip first.")
@click.option("--holdout", is_flag=True, help="Show held-out rows instead of training rows.")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write an HTML page to FILE instead of printing.",
)
@json_option
def show(run: str, variant: str | None, count: int, skip: int, holdout: bool, page: Path | None, as_json: bool) -> None:
    """Show rows as the model will see them.

    Trained tokens are green on a terminal, and between ⟦ and ⟧ elsewhere.
    """
    from attrs import asdict

    from modelwright.core.api.errors import UsageError
    from modelwright.core.api.files import write_text
    from modelwright.core.cli.common import prepared_folder
    from modelwright.core.stages.prepare import preview

    folder = prepared_folder(run, variant)
    rows = preview.preview(folder, count, skip=skip, split=preview.HOLDOUT if holdout else preview.TRAIN)
    if page is not None:
        if page.is_dir():
            raise UsageError(f"--html {page}: this is a folder; give the name of a file")
        write_text(page, preview.html_page(f"{folder.parent.name}: {len(rows)} rows", rows))
        click.echo(f"wrote {page}")
    elif as_json:
        print_json([asdict(one) for one in rows])
    elif not rows:
        click.echo("No rows to show.")
    else:
        _print_preview(rows)


@data.command()
@click.argument("run", metavar="RUN")
@click.option("--variant", metavar="NAME", help="Variant of the run.toml, if it has several.")
@json_option
def stats(run: str, variant: str | None, as_json: bool) -> None:
    """Count rows and tokens, also by length and source.

    Also counts trained tokens and the rows that were left out, with their reasons.
    """
    from attrs import asdict

    from modelwright.core.cli.common import prepared_folder
    from modelwright.core.stages.prepare.preview import statistics

    found = statistics(prepared_folder(run, variant))
    if as_json:
        print_json(asdict(found))
    else:
        _print_statistics(found)


def _print_preview(rows: Sequence[PreviewRow]) -> None:
    from attrs import asdict
    from rich.console import Console

    from modelwright.core.cli.data import example_text

    console = Console()
    for number, one in enumerate(rows):
        if number:
            console.print()
        console.print(example_text(asdict(one), colored=console.is_terminal), soft_wrap=not console.is_terminal)


def _print_statistics(found: Statistics) -> None:
    from modelwright.core.cli.data import label_shares

    report = found.report
    click.echo(f"{report['read']:,} rows read, {report['rows']:,} training rows, {report['tokens']:,} tokens")
    for name, n in report["detected"].items():
        click.echo(f"read as {name} ({n:,} rows)")
    if report["packs"]:
        packs = report["packs"]
        click.echo(f"{packs['packs']:,} packs, {packs['filled']:.1%} full")
    print_table(
        ("tokens", "", "share"), [(name, f"{n:,}", _share(n, report["tokens"])) for name, n in label_shares(report)]
    )
    left = [(words, report[key]) for key, words in LEFT_OUT if report[key]]
    left += [(name, n) for name, n in report["removed"].items() if n]
    left += [(f"anomaly {name}", n) for name, n in report["anomalies"].items()]
    if left:
        print_table(("left out or unusual", "examples"), [(words, f"{n:,}") for words, n in left])
    if report["reasons"]:
        print_table(("rejected rows", "count"), [(reason, f"{n:,}") for reason, n in report["reasons"].items()])
    print_table(("source", "examples"), [(source, f"{n:,}") for source, n in found.sources.items()])
    if found.lengths:
        click.echo("tokens per row: " + ", ".join(f"{name} {n:,}" for name, n in found.lengths.items()))
        most = max(found.histogram.values())
        rows = [(f"up to {edge:,}", f"{n:,}", "█" * round(BAR * n / most)) for edge, n in found.histogram.items()]
        print_table(("tokens", "rows", ""), rows)


LEFT_OUT = (
    ("rejected", "rejected rows"),
    ("undrawn", "left out by the weight of their source"),
    ("too_long", "longer than [data.tokens] max_length"),
    ("untrained", "without any trained token"),
    ("holdout_rows", "held out to measure the loss"),
)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


# Characters shown of each part of an example while a run works; `data show` prints all of them.
PART = 160


def label_shares(data: Any) -> list[tuple[str, int]]:
    """The number of trained tokens by role and kind of span, then that of untrained ones."""
    trained = [(f"{role} {kind}", n) for role, named in data["trained_by_role"].items() for kind, n in named.items()]
    return [*trained, ("not trained", data["tokens"] - sum(n for _, n in trained))]


def label_text(data: Any) -> str:
    """One line: the shares of trained tokens, and the number of examples with suspicious labels."""
    shares = [f"{name} {n / data['tokens']:.1%}" for name, n in label_shares(data) if data["tokens"]]
    anomalies = {"begin-doubled": 0, "end-missing": 0, **data["anomalies"]}
    unusual = [("nothing trained", data["untrained"]), ("too long", data["too_long"]), *anomalies.items()]
    return f"labels: {', '.join(shares)}; " + ", ".join(f"{n:,} {name}" for name, n in unusual)


def example_text(one: Any, *, colored: bool, most: int | None = None) -> Text:
    """A row with its trained parts in green, or between ⟦ and ⟧ without colors.

    Args:
        one: a `PreviewRow`, as a dictionary.
        colored: whether the output shows colors.
        most: maximum number of characters of a part; the middle of a longer one is left out.
    """
    from rich.text import Text

    text = Text(f"{one['source'] or one['id']}   {one['tokens']:,} tokens, {one['trained']:,} trained\n", style="bold")
    shown = Text(style="not bold")
    for part in one["parts"]:
        words = part["text"]
        if most is not None and len(words) > most:
            words = f"{words[: most // 2]} … {words[-most // 2 :]}"
        if colored:
            shown.append(words, style="green" if part["trained"] else "dim")
        else:
            shown.append(f"⟦{words}⟧" if part["trained"] else words)
    return text.append_text(shown)


def print_examples(console: Console, examples: Iterable[Any]) -> None:
    """Print rows, indented and shortened."""
    from rich.text import Text

    for one in examples:
        text = example_text(one, colored=console.is_terminal, most=PART)
        text.rstrip()
        for line in text.split("\n", allow_blank=True):
            console.print(Text("    ").append_text(line), soft_wrap=True)
