"""`modelwright config check | show`: what a run.toml means, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelwright.core.cli.common import json_option, print_json, run_options

if TYPE_CHECKING:
    from modelwright.core.config import RunConfig


@click.group()
def config() -> None:
    """Check or show a run.toml."""


@config.command()
@run_options
@json_option
def check(path: Path, variants: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Say what is wrong with a run.toml, all of it at once; exit 2 if anything is.

    With --json: {"ok": …, "names": […], "problems": [{source, line, column, table, key, message}, …]}.
    """
    from modelwright.core.config import ConfigError, read_run

    try:
        runs = read_run(path, variants=variants, overrides=overrides)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "names": [], "problems": [problem.to_row() for problem in error.problems]})
        return error.exit_code
    if as_json:
        print_json({"ok": True, "names": [one.name for one in runs.configs], "problems": []})
        return 0
    for one in runs.configs:
        click.echo(f"{path}: ok ({_summary(one)})")
    return 0


@config.command()
@run_options
@json_option
def show(path: Path, variants: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Print what a run.toml comes to, defaults and all: a TOML document for each variant, or a JSON list of them."""
    import tomli_w

    from modelwright.core.config import read_run, to_plain

    runs = read_run(path, variants=variants, overrides=overrides)
    if as_json:
        print_json([to_plain(one) for one in runs.configs])
        return
    for number, one in enumerate(runs.configs):
        if number:
            click.echo()
        click.echo(f"# {one.name}, from {path}")
        click.echo(tomli_w.dumps(to_plain(one)), nl=False)


def _summary(config: RunConfig) -> str:
    suites = ", ".join(suite.name for suite in config.evaluate)
    evaluated = f"evaluated on {suites}" if suites else "not evaluated"
    return f"{config.name}: {config.data.format} data, {config.train.trainer} trainer, {evaluated}"
