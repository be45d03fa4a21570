"""`modelwright prepare`."""

from __future__ import annotations

from typing import Any

import click

from modelwright.core.cli.run import perform_stages, stage_options


@click.command()
@stage_options
def prepare(**given: Any) -> None:
    """Turn RUN.toml's raw rows into training tokens."""
    perform_stages("prepare", **given)
