"""`modelwright config check | show`: the mistakes in a run or evaluation file, and the configuration that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import frozen

from modelwright.core.cli.common import json_option, print_json, run_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelwright.core.config import EvalConfig, RunConfig


@click.group()
def config() -> None:
    """Check or show a run or evaluation file."""


@config.command()
@run_options
@json_option
def check(path: Path, variants: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Report all mistakes in a run or evaluation file.

    Exits with 2 if there are any.

    With --json: {"ok": …, "names": […], "problems": [{source, line, column, table, key, message}, …]}.
    """
    from modelwright.core.config import ConfigError

    try:
        configs = _read(path, variants, overrides)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "names": [], "problems": [problem.to_row() for problem in error.problems]})
        return error.exit_code
    if as_json:
        print_json({"ok": True, "names": [one.name for one in configs if one.name], "problems": []})
        return 0
    for one in configs:
        click.echo(f"{path}: ok ({one.summary})")
    return 0


@config.command()
@run_options
@json_option
def show(path: Path, variants: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the configuration with all defaults.

    One TOML document per variant, or a JSON list of them.
    """
    import tomli_w

    from modelwright.core.config import to_plain

    configs = _read(path, variants, overrides)
    if as_json:
        print_json([to_plain(one.config) for one in configs])
        return
    for number, one in enumerate(configs):
        if number:
            click.echo()
        click.echo(f"# {f'{one.name}, ' if one.name else ''}from {path}")
        click.echo(tomli_w.dumps(to_plain(one.config)), nl=False)


@frozen(kw_only=True)
class _Read:
    """A configuration, its name (None for an evaluation), and a summary of a few words."""

    config: RunConfig | EvalConfig
    name: str | None
    summary: str


def _read(path: Path, variants: Sequence[str], overrides: Sequence[str]) -> list[_Read]:
    from modelwright.core.api.errors import UsageError
    from modelwright.core.config import is_eval_file, read_eval, read_run

    if not is_eval_file(path):
        runs = read_run(path, variants=variants, overrides=overrides).configs
        return [_Read(config=one, name=one.name, summary=_summary(one)) for one in runs]
    if variants:
        raise UsageError(f"--variant {variants[0]}: {path} is an evaluation file, which has no variants")
    one = read_eval(path, overrides=overrides).config
    models = "all models" if one.models == "all" else ", ".join(one.models)
    return [_Read(config=one, name=None, summary=f"{models} {_evaluated(one)}")]


def _summary(config: RunConfig) -> str:
    trainer = f"{config.train.trainer} trainer" if config.train else "not trained"
    return f"{config.name}: {config.data.format} data, {trainer}, {_evaluated(config)}"


def _evaluated(config: RunConfig | EvalConfig) -> str:
    suites = ", ".join(suite.name for suite in config.evaluate)
    return f"evaluated on {suites}" if suites else "not evaluated"
