"""A test set: its examples, the prompts made of them, and what its result depends on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from modelwright.core.api.components import ComponentSpec, EngineSpec, FormatSpec, MetricSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.records import Example, Message
from modelwright.core.config.metrics import metric_name
from modelwright.core.config.schema import SourceConfig, SuiteConfig
from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare.examples import read_examples
from modelwright.core.stages.prepare.sources import Row, read_source, source_digests

# Runs the models; the engine that serves them is the same.
ENGINE = "torch"
# All are in memory while they are graded.
MOST_ANSWERS = 1_000_000


def suite_checks(suites: Sequence[SuiteConfig], plugins: Plugins, *, seed: int) -> Iterator[Callable[[], object]]:
    """The checks to make before an evaluation starts; each raises a ModelwrightError if it finds something wrong."""
    if not suites:
        return
    yield plugins.get(EngineSpec, ENGINE).check
    for suite in suites:
        yield from (plugins.get(MetricSpec, metric_name(label)).check for label in suite.metrics)
        yield partial(read_suite, suite, plugins, seed=seed)


def _source(suite: SuiteConfig) -> SourceConfig:
    return SourceConfig(path=suite.path)


def suite_inputs(suite: SuiteConfig, values: Mapping[str, Any], plugins: Plugins, *, seed: int) -> dict[str, Any]:
    """What a suite's result depends on, beside the model; `values` is the suite's table as plain values."""
    assert suite.format is not None
    specs: list[ComponentSpec] = [plugins.get(FormatSpec, suite.format)]
    specs += [plugins.get(MetricSpec, metric_name(label)) for label in suite.metrics]
    return {
        "suite": {**values, "path": None},
        "data": suite_digests(suite, seed),
        "plugins": [plugins.origin(spec) for spec in specs],
        "seed": seed,
    }


def suite_digests(suite: SuiteConfig, seed: int) -> list[tuple[str, str]]:
    """The names and digests of a test set's files, as `source_digests` gives them."""
    return source_digests(_source(suite), seed)


def read_suite(suite: SuiteConfig, plugins: Plugins, *, seed: int) -> list[Example]:
    """The examples of a test set.

    Raises:
        UsageError: more answers are requested than there is room for.
        ModelwrightError: a row cannot be read (a test set with holes gives figures that compare with nothing), or an
            example has nothing to ask or to grade against.
    """
    assert suite.format is not None
    reader = plugins.get(FormatSpec, suite.format).create(suite.options)

    refused: list[str] = []

    def refuse(row: Row, reason: str) -> None:
        refused.append(f"{row.file}:{row.line}: {reason}")

    rows = read_source(_source(suite), seed)
    examples = read_examples(rows, reader, format_name=suite.format, reject=refuse)
    chosen = list(itertools.islice(examples, suite.limit))
    if refused:
        rows_text = "row" if len(refused) == 1 else "rows"
        raise ModelwrightError(
            f"suite {suite.name}: {len(refused)} {rows_text} of {suite.path} cannot be read; the first is {refused[0]}"
        )
    if not chosen:
        raise ModelwrightError(f"suite {suite.name}: {suite.path} gives no examples")
    if len(chosen) * suite.samples > MOST_ANSWERS:
        raise UsageError(
            f"suite {suite.name}: {len(chosen)} examples with {suite.samples} samples each are too many answers: lower "
            f"limit or samples, to at most {MOST_ANSWERS} answers in total"
        )
    for example in chosen:
        if not prompt_messages(example):
            raise ModelwrightError(f"suite {suite.name}: {example.source}: no message comes before the answer")
    return chosen


def prompt_messages(example: Example) -> tuple[Message, ...]:
    """The conversation up to the answer: the assistant's messages at its end are what the model must write."""
    reversed_messages = itertools.dropwhile(lambda message: message.role == "assistant", reversed(example.messages))
    return tuple(reversed(list(reversed_messages)))


def with_answer(example: Example) -> Example:
    """The example with the reference that metrics grade against: `answer`, else what the assistant says last."""
    if example.answer is not None or not example.messages or example.messages[-1].role != "assistant":
        return example
    return attrs.evolve(example, answer=example.messages[-1].content)


def seeds(example: Example, samples: int, seed: int) -> Iterator[int]:
    """A seed for each sample of an example, independent of the order of the examples."""
    texts = (f"{seed}:sample:{example.id}:{sample}" for sample in range(samples))
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts)
