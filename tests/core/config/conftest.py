"""A set of components made by hand, and the shortest way from a run.toml's text to what is read of it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from attrs import field, frozen, validators

from modelwright.core.api import FormatSpec, MetricSpec, RegistrySpec, TrainerSpec
from modelwright.core.config import ConfigError, RunConfig, Runs, read_run
from modelwright.core.plugins import Plugin, Plugins


@frozen(kw_only=True)
class QaOptions:
    instruction: str = ""
    style: Literal["plain", "boxed"] = "plain"


@frozen(kw_only=True)
class TableOptions:
    question: str
    answer: str = "answer"


@frozen(kw_only=True)
class SgdOptions:
    momentum: float = field(default=0.9, validator=validators.ge(0.0))


COMPONENTS = (
    FormatSpec(name="qa", summary="question, answer", options=QaOptions, factory="nowhere:Qa"),
    FormatSpec(name="table", summary="named columns", options=TableOptions, factory="nowhere:Table"),
    FormatSpec(name="bare", summary="no options", factory="nowhere:Bare"),
    TrainerSpec(
        name="local",
        summary="one process",
        factory="nowhere:Local",
        adapters=True,
        quantizations=("nf4", "int8", "fp8"),
    ),
    TrainerSpec(name="sgd", summary="another optimiser", options=SgdOptions, factory="nowhere:Sgd"),
    MetricSpec(name="exact_match", summary="the same text", factory="nowhere:Match"),
    MetricSpec(name="math_accuracy", summary="the same number", factory="nowhere:Accuracy"),
    RegistrySpec(name="sql", summary="SQLite", schemes=("sqlite",), factory="nowhere:Sql"),
)

# A person's file, not a built one: tests count its lines and change its text.
MINIMAL = """\
name = "tiny"
[model.scratch]
[data]
format = "qa"
[[data.sources]]
path = "train.jsonl"
[train]
max_steps = 10
"""


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    plugin = Plugin(plugin="hand", distribution="hand-made", version="1", status="loaded", components=COMPONENTS)
    return Plugins(found=(plugin,))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a run.toml, or a file of another name, into a folder that is not the working directory, but beside it."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def write(text: str, name: str = "run.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read(write, plugins) -> Callable[..., Runs]:
    """Reads a text as a run.toml, with the components made by hand."""

    def read(text: str, *overrides: str, name: str = "run.toml", **options) -> Runs:
        return read_run(write(text, name), overrides=overrides, plugins=options.pop("plugins", plugins), **options)

    return read


@pytest.fixture
def read_one(read) -> Callable[..., RunConfig]:
    """Reads a text that has one configuration."""

    def read_one(text: str, *overrides: str, **options) -> RunConfig:
        (config,) = read(text, *overrides, **options).configs
        return config

    return read_one


@pytest.fixture
def places(wording, tmp_path: Path) -> Callable[[ConfigError], list[str]]:
    """The place of each problem, `FILE:LINE [TABLE] KEY`; the wordings are compared with tests/messages.txt."""

    def places(error: ConfigError) -> list[str]:
        assert str(error).splitlines() == list(error.lines)
        assert all(line.isprintable() for line in error.lines)
        found = []
        for problem in error.problems:
            line, message = (text.replace(f"{tmp_path}/", "") for text in (str(problem), problem.message))
            wording(line)
            found.append(line.removesuffix(message).removesuffix(": "))
        return found

    return places


@pytest.fixture
def mistakes(read, places) -> Callable[..., list[str]]:
    """The places of the mistakes in a wrong run.toml."""

    def mistakes(text: str, *overrides: str, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text, *overrides, **options)
        return places(caught.value)

    return mistakes


@pytest.fixture
def minimal() -> str:
    """The shortest run.toml that is right."""
    return MINIMAL
