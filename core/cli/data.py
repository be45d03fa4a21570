"""`modelwright data show | stats`: what a run's training data came to."""

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
    from modelwright.core.stages.prepare import preview

    folder = prepared_folder(run, variant)
    rows = preview.preview(folder, count, skip=skip, split=preview.HOLDOUT if holdout else preview.TRAIN)
    if page is not None:
        if page.is_dir():
            raise UsageError(f"--html {page}: it is a folder; name a file")
        write_text(page, preview.html_page(f"{folder.parent.name}: {len(rows)} rows", rows))
        click.echo(f"wrote {page}")
    elif as_json:
        print_json([asdict(one) for one in rows])
    elif not rows:
        click.echo("There are no such rows.")
    else:
        _print_preview(rows)


@data.command()
@click.argument("run", metavar="RUN")
@click.option("--variant", metavar="NAME", help="Of a run.toml with variants.")
@json_option
def stats(run: str, variant: str | None, as_json: bool) -> None:
    """Count rows and tokens: lengths, sources, what is learnt, what was left out and why."""
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
        console.print(example_text(asdict(one), coloured=console.is_terminal), soft_wrap=not console.is_terminal)


def _print_statistics(found: Statistics) -> None:
    from modelwright.core.cli.data import label_shares

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


# So many characters of each part of an example are shown while a run works; `data show` has them all.
PART = 160


def label_shares(data: Any) -> list[tuple[str, int]]:
    """Which tokens are learnt, by role and kind of span, and how many are not."""
    learnt = [(f"{role} {kind}", n) for role, named in data["trained_by_role"].items() for kind, n in named.items()]
    return [*learnt, ("not learnt", data["tokens"] - sum(n for _, n in learnt))]


def label_text(data: Any) -> str:
    """The shares, and how many examples have what makes labels wrong, in one line."""
    shares = [f"{name} {n / data['tokens']:.1%}" for name, n in label_shares(data) if data["tokens"]]
    anomalies = {"begin-doubled": 0, "end-missing": 0, **data["anomalies"]}
    strange = [("nothing learnt", data["untrained"]), ("too long", data["too_long"]), *anomalies.items()]
    return f"labels: {', '.join(shares)}; " + ", ".join(f"{n:,} {name}" for name, n in strange)


def example_text(one: Any, *, coloured: bool, most: int | None = None) -> Text:
    """A row with what is learnt of it green, or between ⟦ and ⟧ where there are no colours.

    Args:
        one: a `PreviewRow`, as a dictionary.
        coloured: see above.
        most: of a longer part, the middle is left out.
    """
    from rich.text import Text

    text = Text(f"{one['source'] or one['id']}   {one['tokens']:,} tokens, {one['trained']:,} learnt\n", style="bold")
    shown = Text(style="not bold")
    for part in one["parts"]:
        words = part["text"]
        if most is not None and len(words) > most:
            words = f"{words[: most // 2]} … {words[-most // 2 :]}"
        if coloured:
            shown.append(words, style="green" if part["trained"] else "dim")
        else:
            shown.append(f"⟦{words}⟧" if part["trained"] else words)
    return text.append_text(shown)


def print_examples(console: Console, examples: Iterable[Any]) -> None:
    """Some rows, indented, each part of them short."""
    from rich.text import Text

    for one in examples:
        text = example_text(one, coloured=console.is_terminal, most=PART)
        text.rstrip()
        for line in text.split("\n", allow_blank=True):
            console.print(Text("    ").append_text(line), soft_wrap=True)
