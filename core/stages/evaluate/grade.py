"""One model on one suite: ask, grade, and leave the results in the pair's folder."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from attrs import asdict, frozen

from modelwright.core.api import files
from modelwright.core.api.components import Engine, Metric, MetricSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.records import Example, Figure, Output, Score
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config.components import metric_with_options
from modelwright.core.config.schema import EvalConfig, SuiteConfig
from modelwright.core.runs.worker import Worker
from modelwright.core.stages.evaluate.answer_cache import Remembering
from modelwright.core.stages.evaluate.generate import generate
from modelwright.core.stages.evaluate.work_list import RESULTS, Pair

PROGRESS_SECONDS = 0.5

Record = TypeVar("Record")
Emit = Callable[[str, Mapping[str, Any]], None]


@frozen(kw_only=True)
class Loaded:
    """A model that is ready to answer.

    Attributes:
        engine: it is loaded there.
        renderer: its own.
        context: its context in tokens; None is no limit.
    """

    engine: Engine
    renderer: Renderer
    context: int | None


def grade(
    worker: Worker[EvalConfig], loaded: Loaded, suite: SuiteConfig, examples: Sequence[Example], pair: Pair, emit: Emit
) -> None:
    """Ask a model all examples of a suite and grade its answers.

    Args:
        worker: the process.
        loaded: the model.
        suite: how to ask.
        examples: of the suite, each with its reference answer.
        pair: where the results go; they appear whole or not at all.
        emit: writes an event.

    Raises:
        StopRequested: someone asked to stop; the answers so far are kept.
        ModelwrightError: a prompt does not fit, or a metric failed.
    """
    emit("suite", {"suite": suite.name, "examples": len(examples)})
    begin = time.monotonic()
    outputs = _ask(worker, loaded, suite, examples, pair, emit)
    generated = time.monotonic() - begin
    scores, metrics = _score(worker, suite, examples, outputs)
    results = {
        "suite": suite.name,
        "fingerprint": pair.fingerprint,
        "examples": len(examples),
        "metrics": metrics,
        "verdicts": {name: dict(Counter(score.verdict for score in graded)) for name, graded in scores.items()},
        "finishes": dict(Counter(output.finish for answers in outputs for output in answers)),
        "generating_seconds": round(generated, 3),
    }
    with files.writing_folder(pair.folder) as folder:
        samples = folder / pair.samples.name
        with samples.open("w", encoding="utf-8") as file:
            for number, (example, answers) in enumerate(zip(examples, outputs, strict=True)):
                graded = {name: asdict(given[number]) for name, given in scores.items()}
                row = {"example": example.to_row(), "outputs": [asdict(output) for output in answers], "scores": graded}
                file.write(files.json_line(row))
        files.write_json(folder / RESULTS, results | {"samples_size": samples.stat().st_size})
    emit("graded", {"suite": suite.name, "metrics": metrics})


def _ask(
    worker: Worker[EvalConfig], loaded: Loaded, suite: SuiteConfig, examples: Sequence[Example], pair: Pair, emit: Emit
) -> list[tuple[Output, ...]]:
    last = time.monotonic()

    def progress(finished: int) -> None:
        nonlocal last
        worker.folder.check_stop()
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            emit("answered", {"suite": suite.name, "answered": finished, "examples": len(examples)})

    remembering = Remembering(loaded.engine, pair.answers, pair.answers_fingerprint)
    with contextlib.closing(remembering):
        return asyncio.run(
            generate(
                remembering,
                loaded.renderer,
                examples,
                settings=suite.generation,
                samples=suite.samples,
                seed=worker.config.seed,
                context=loaded.context,
                progress=progress,
            )
        )


def _score(
    worker: Worker[EvalConfig], suite: SuiteConfig, examples: Sequence[Example], outputs: Sequence[Sequence[Output]]
) -> tuple[dict[str, list[Score]], dict[str, dict[str, float]]]:
    scores: dict[str, list[Score]] = {}
    figures: dict[str, dict[str, float]] = {}
    for label in suite.metrics:
        with _created(*metric_with_options(worker.plugins, label)) as metric:
            graded: list[Score] = []
            for example, answers in zip(examples, outputs, strict=True):
                worker.folder.check_stop()
                with _blamed_on(f"metric {label!r} failed on {example.source}"):
                    graded.append(_expect(Score, metric.score(example, answers)))
            scores[label] = graded
            with _blamed_on(f"metric {label!r} failed to aggregate {len(graded)} scores"):
                figures[label] = asdict(_expect(Figure, metric.aggregate(graded)))
    return scores, figures


@contextlib.contextmanager
def _created(spec: MetricSpec, options: Any) -> Iterator[Metric]:
    """A metric of its own for each suite; one that holds something beyond memory may have a `close()`."""
    metric: Metric = spec.create(options)
    try:
        yield metric
    finally:
        getattr(metric, "close", lambda: None)()


@contextlib.contextmanager
def _blamed_on(what: str) -> Iterator[None]:
    """Say whose mistake an error is: a plugin's."""
    try:
        yield
    except ModelwrightError:
        raise
    except Exception as error:
        raise ModelwrightError(f"{what}: {type(error).__name__}: {error}") from error


def _expect(kind: type[Record], value: object) -> Record:
    if not isinstance(value, kind):
        msg = f"it gave {type(value).__name__}, not {kind.__name__}"
        raise TypeError(msg)
    return value
