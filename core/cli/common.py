"""What several commands share: options and types of values, finding a run, and JSON and tables on standard output."""

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
        "--registry",
        metavar="URL",
        help="URL of the registry. Default: $MODELWRIGHT_REGISTRY, or else registry.db in $MODELWRIGHT_HOME.",
    )(command)


def json_option(command: Command) -> Command:
    """`--json`, passed to the command as `as_json`; then standard output holds JSON alone."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def run_options(command: Command, *, required: bool = True) -> Command:
    """`RUN.toml`, `--variant NAME`… and `--set KEY=VALUE`…, passed as `path`, `variants` and `overrides`.

    `path` is None if the command also works without a RUN.toml (not `required`) and none is given.
    """
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of RUN.toml: train.max_steps=10, 'model.base=\"./base\"'. VALUE is TOML. Repeatable.",
    )(command)
    command = click.option(
        "--variant", "variants", multiple=True, metavar="NAME", help="Use only this variant of RUN.toml. Repeatable."
    )(command)
    return click.argument(
        "path", metavar="RUN.toml" if required else "[RUN.toml]", type=click.Path(path_type=Path), required=required
    )(command)


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
    """Write a table; if the output is not a terminal, it is as wide as it needs, so that logs and pipes cut nothing."""
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


class DiskPath(click.Path):
    """A path on disk: an empty one does not mean "here", and a URL is not the path that it looks like."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            ConfigError: it is empty, or a URL.
        """
        from modelwright.core.config import ConfigError, Problem
        from modelwright.core.config.errors import Invalid
        from modelwright.core.config.paths import check_on_disk

        try:
            if isinstance(value, str):
                check_on_disk(value)
        except Invalid as error:
            raise ConfigError([Problem(source=_flag(param), message=str(error))]) from error
        return super().convert(value, param, ctx)


def once(context: click.Context, param: click.Parameter, values: Sequence[str]) -> str | None:  # noqa: ARG001 - click's
    """A callback for an option with `multiple`: its one value; None where it is not given.

    Raises:
        UsageError: it is given twice; click would keep the last one.
    """
    from modelwright.core.api.errors import UsageError

    if len(values) > 1:
        times = "twice" if len(values) == 2 else f"{len(values)} times"
        raise UsageError(f"{_flag(param)} is given {times}: give it once")
    return values[0] if values else None


def _flag(param: click.Parameter | None) -> str:
    if isinstance(param, click.Option):
        return param.opts[0]
    return "" if param is None else param.human_readable_name
