"""An evaluation asked for on the command line: flags to an `EvalConfig`, and what is taken where nothing is said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from modelwright.core.config import ConfigError, eval_from_plain
from modelwright.core.config.errors import Problem
from modelwright.core.config.paths import Written
from modelwright.core.config.schema import EvalConfig
from modelwright.core.plugins import Plugins
from modelwright.core.stages.evaluate.detect_format import default_metric, recognise
from modelwright.core.stages.prepare.convert import given_source, parse_options

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
class Direct:
    """What was given; None, or nothing, where it was not.

    Attributes:
        models: addresses, or "all".
        data: where the test set is.
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
    data: str
    format_name: str | None = None
    options: Sequence[str] = ()
    metrics: Sequence[str] = ()
    name: str | None = None
    limit: int | None = None
    samples: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None


def direct_config(direct: Direct, plugins: Plugins) -> tuple[EvalConfig, list[str]]:
    """The configuration that the flags mean, and a line for each thing that was taken because nothing was said.

    Raises:
        ConfigError: a flag is wrong.
        UsageError: the format must be named; or there is no such data file.
    """
    path, said = given_source("--data", direct.data).path, []
    format_name = direct.format_name
    if format_name is None:
        if direct.options:
            raise ConfigError([Problem(source="--option", message="needs --format, whose option it is")])
        format_name = recognise(path, plugins, seed=_DEFAULT_SEED if direct.seed is None else direct.seed)
        said.append(f"format: {format_name} (the only one that reads the first rows; --format says otherwise)")
    metrics = Written.mark(list(direct.metrics), Path.cwd())
    if not metrics:
        metrics = [default_metric(format_name)]
        said.append(f"metric: {metrics[0]} (--metric says otherwise)")
    name = direct.name
    if name is None:
        name = suite_name(path)
        said.append(f"suite:  {name} (made of the data's name; --name says otherwise)")
    suite = {
        "name": name,
        "path": path,
        "format": format_name,
        "options": parse_options(direct.options),
        "metrics": metrics,
        "limit": direct.limit,
        "samples": direct.samples,
        "generation": _given({"max_tokens": direct.max_tokens, "temperature": direct.temperature}),
    }
    values = {
        "models": "all" if direct.models == "all" else list(direct.models),
        "seed": direct.seed,
        "evaluate": [_given(suite)],
    }
    try:
        return eval_from_plain(_given(values), plugins), said
    except ConfigError as error:
        raise ConfigError([_of_flag(problem) for problem in error.problems]) from error


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, {})}


def _of_flag(problem: Problem) -> Problem:
    """The problem, told of the flag that the key comes from."""
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
