"""An evaluation from command-line flags: which format reads the data, defaults, and the `EvalConfig`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, fields, frozen

from modelwright.core.api.components import FormatSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.config import ConfigError, eval_from_plain
from modelwright.core.config.data import RowsConfig, SourceConfig
from modelwright.core.config.errors import Problem
from modelwright.core.config.paths import Written
from modelwright.core.config.schema import EvalConfig
from modelwright.core.plugins import Plugins
from modelwright.core.stages.evaluate.suites import prompt_messages
from modelwright.core.stages.prepare.convert import given_source, parse_options
from modelwright.core.stages.prepare.examples import read_examples
from modelwright.core.stages.prepare.sources import Row, read_source

# How many rows are read to tell formats apart.
ROWS = 20

_MATH = "math"


def detect_format(source: SourceConfig, plugins: Plugins, *, seed: int) -> str:
    """The one installed format that reads the first rows of a source as questions with answers.

    Raises:
        UsageError: none does, or several do; the message names them.
        ModelwrightError: the rows cannot be read at all.
    """
    path, rows = source.place, list(itertools.islice(read_source(source, seed), ROWS))
    reasons = {name: _why_not(name, rows, plugins) for name in plugins.names(FormatSpec.kind)}
    able = [name for name, reason in reasons.items() if reason is None]
    if len(able) == 1:
        return able[0]
    if able:
        both = "both" if len(able) == 2 else "all"
        raise UsageError(f"{path}: the formats {_and(able)} {both} read its first rows; choose one with --format")
    raise UsageError(
        f"{path}: no installed format reads its first rows as questions with answers ({_listed(reasons)}): "
        "choose one with --format, and give its options with --option"
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
        return "it finds no question"
    return None


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _listed(reasons: Mapping[str, str | None]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "none is installed"


_DEFAULT_SEED = 17
_LONGEST_NAME = 64

# Where a key of the configuration comes from; the first pattern that fits.
_FLAGS = (
    (r"models\.\d+", "--model"),
    (r"seed", "--seed"),
    (r"evaluate\.0\.options\.(.+)", "--option"),
    (r"evaluate\.0\.options", "--option"),
    (r"evaluate\.0\.format", "--format"),
    (r"evaluate\.0\.metrics\.\d+(?:\.(.+))?", "--metric"),
    (r"evaluate\.0\.path", "--data"),
    (r"evaluate\.0\.generation\.max_tokens", "--max-tokens"),
    (r"evaluate\.0\.(?:generation\.)?(\w+)", "--"),
)


@frozen(kw_only=True)
class Flags:
    """What was given; None, or nothing, where it was not.

    Attributes:
        models: addresses, or "all".
        data: where the test set is, a path.
        dataset: the data set that the package `datasets` reads, instead of `data`.
        config: its config.
        split: its split.
        revision: its revision.
        format_name: the format that reads it.
        options: of the format, each `KEY=VALUE` in TOML.
        metrics: each NAME or NAME(KEY=VALUE, …).
        name: the suite's.
        limit: the most examples.
        samples: answers for each example.
        max_tokens: of an answer.
        temperature: of sampling.
        seed: of everything random.
    """

    models: Sequence[str]
    data: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    format_name: str | None = None
    options: Sequence[str] = ()
    metrics: Sequence[str] = ()
    name: str | None = None
    limit: int | None = None
    samples: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None


def config_from_flags(flags: Flags, plugins: Plugins) -> tuple[EvalConfig, list[str]]:
    """The configuration that the flags mean, and a line for each thing that was taken because nothing was said.

    Raises:
        ConfigError: a flag is wrong.
        UsageError: the format must be named; or there is no such data file.
    """
    if (flags.data is None) == (flags.dataset is None):
        raise UsageError("give exactly one of --data PATH and --dataset ORG/NAME, the test set")
    chosen = {key: getattr(flags, key) for key in ("dataset", "config", "split", "revision")}
    source, said = given_source("--data", flags.data, **chosen), []
    format_name = flags.format_name
    if format_name is None:
        if flags.options:
            raise ConfigError([Problem(source="--option", message="needs --format: options belong to a format")])
        format_name = detect_format(source, plugins, seed=_DEFAULT_SEED if flags.seed is None else flags.seed)
        said.append(f"format: {format_name} (the only format that reads the first rows; override with --format)")
    metrics = Written.mark(list(flags.metrics), Path.cwd())
    if not metrics:
        metrics = [default_metric(format_name)]
        said.append(f"metric: {metrics[0]} (override with --metric)")
    name = flags.name
    if name is None:
        name = suite_name(source.dataset or source.place)
        said.append(f"suite:  {name} (derived from the data's name; override with --name)")
    suite = {
        "name": name,
        **{one.name: getattr(source, one.name) for one in fields(RowsConfig)},
        "format": format_name,
        "options": parse_options(flags.options),
        "metrics": metrics,
        "limit": flags.limit,
        "samples": flags.samples,
        "generation": _given({"max_tokens": flags.max_tokens, "temperature": flags.temperature}),
    }
    values = {
        "models": "all" if flags.models == "all" else list(flags.models),
        "seed": flags.seed,
        "evaluate": [_given(suite)],
    }
    try:
        return eval_from_plain(_given(values), plugins), said
    except ConfigError as error:
        raise ConfigError([_of_flag(problem) for problem in error.problems]) from error


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, {})}


def _of_flag(problem: Problem) -> Problem:
    """The problem, reported at the flag that set the key."""
    for pattern, flag in _FLAGS:
        match = re.fullmatch(pattern, problem.key)
        if match:
            inner = (match[1] or "") if match.groups() else ""
            if flag == "--":
                return evolve(problem, source=f"--{inner}", key="")
            return evolve(problem, source=flag, key=inner)
    return problem


def suite_name(path: str) -> str:
    """A valid suite's name made of where the data is: `data/GSM8K test.jsonl.gz` is gsm8k_test, `*.jsonl` is data."""
    last = re.sub(r"[*?\[\]]", "", Path(path.rpartition(":")[2]).name)
    name = re.sub(r"[^a-z0-9_-]+", "_", last.partition(".")[0].lower()).strip("_-")[:_LONGEST_NAME]
    if not name:
        return "data"
    return name if name[0].isalpha() else f"data_{name}"
