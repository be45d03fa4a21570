"""What several commands share: options, and JSON and tables on standard output."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Text(click.types.StringParamType):
    """Text that a message can hold: what is not UTF-8 in an argument comes as surrogates, which it cannot."""

    def __init__(self, *, empty: bool = True) -> None:
        self._empty = empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself."""
        text: str = super().convert(value, param, ctx)
        if not text and not self._empty:
            self.fail("it is empty: expected at least one character.", param, ctx)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self.fail("it is not UTF-8.", param, ctx)
        return text


class FiniteRange(click.FloatRange):
    """As click's, without its gap: nan is in every range, and inf in those with no upper end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def registry_option(command: Command) -> Command:
    """`--registry URL`, passed to the command as `registry` (None where it is not given)."""
    return click.option(
        "--registry", metavar="URL", help="The registry; default: $MODELWRIGHT_REGISTRY, else the home's SQLite file."
    )(command)


def json_option(command: Command) -> Command:
    """`--json`, passed to the command as `as_json`; then standard output holds JSON alone."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(command)


def run_options(command: Command, *, required: bool = True) -> Command:
    """`RUN.toml`, `--variant NAME`… and `--set KEY=VALUE`…, passed as `path`, `variants` and `overrides`.

    `path` is None where the command works without a RUN.toml, too (not `required`), and is given none.
    """
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Put a value over the file's: train.max_steps=10, 'model.base=\"./base\"'. The right side is TOML.",
    )(command)
    command = click.option("--variant", "variants", multiple=True, metavar="NAME", help="Only this one; may repeat.")(
        command
    )
    return click.argument("path", metavar="RUN.toml", type=click.Path(path_type=Path), required=required)(command)


def size_text(size: int) -> str:
    """Bytes in decimal units, as disks and file managers count."""
    if size < 1000:
        return f"{size:.0f} B"
    power = min(int(math.log10(size)) // 3, 4)
    return f"{size / 1000**power:.1f} {' kMGT'[power]}B"


def figure_text(value: float, low: float, high: float) -> str:
    """A metric with its interval, such as `0.947 [0.930, 0.960]`."""
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def print_json(value: Any) -> None:
    """Write a JSON document to standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Write a table; where the output is no terminal it is as wide as it needs, so that logs and pipes cut nothing."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=False)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if not console.is_terminal:
        unbounded = console.options.update(width=100_000)
        console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)
