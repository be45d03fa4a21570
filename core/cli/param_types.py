"""Values on the command line that click alone would take without a word: empty paths, URLs as paths, options twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


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
