"""Which format reads a data file, for those who name none."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from modelwright.core.api.components import FormatSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.config.paths import FilePath
from modelwright.core.config.schema import SourceConfig
from modelwright.core.plugins import Plugins
from modelwright.core.stages.evaluate.suites import prompt_messages
from modelwright.core.stages.prepare.examples import read_examples
from modelwright.core.stages.prepare.sources import Row, read_source

# So many rows tell one format from another.
ROWS = 20

_MATH = "math"


def recognise(path: str, plugins: Plugins, *, seed: int) -> str:
    """The one installed format that reads the first rows of `path` as questions with answers.

    Raises:
        UsageError: none does, or several do; the message names them.
        ModelwrightError: the rows cannot be read at all.
    """
    rows = list(itertools.islice(read_source(SourceConfig(path=FilePath(path)), seed), ROWS))
    reasons = {name: _why_not(name, rows, plugins) for name in plugins.names(FormatSpec.kind)}
    able = [name for name, reason in reasons.items() if reason is None]
    if len(able) == 1:
        return able[0]
    if able:
        both = "both" if len(able) == 2 else "all"
        raise UsageError(f"{path}: the formats {_and(able)} {both} read its first rows: say which with --format")
    raise UsageError(
        f"{path}: no installed format reads its first rows as questions with answers ({_listed(reasons)}): "
        "name one with --format, and its options with --option"
    )


def default_metric(format_name: str) -> str:
    """What grades a test set when nobody says: math_accuracy for mathematics, exact_match for all else."""
    return "math_accuracy" if format_name == _MATH else "exact_match"


def _why_not(name: str, rows: Sequence[Row], plugins: Plugins) -> str | None:
    """Why a format does not read some rows; None where it does."""
    refused: list[str] = []
    try:
        reader = plugins.get(FormatSpec, name).create()
        examples = list(
            read_examples(rows, reader, format_name=name, reject=lambda _row, reason: refused.append(reason))
        )
    except (ModelwrightError, TypeError) as error:  # TypeError: an option that must be given
        return str(error)
    if refused:
        return refused[0]
    if not examples or not all(prompt_messages(example) for example in examples):
        return "it finds nothing to ask"
    return None


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _listed(reasons: Mapping[str, str | None]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "none is installed"
