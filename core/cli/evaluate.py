"""`modelwright evaluate`."""

from __future__ import annotations

from typing import Any

import click

from modelwright.core.cli.run import perform_stages, stage_options


@click.command()
@stage_options
def evaluate(**given: Any) -> None:
    """Grade RUN.toml's registered model on its test sets."""
    perform_stages("evaluate", **given)
