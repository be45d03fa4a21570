"""The process that evaluates: `python -m modelwright.core.stages.evaluate.worker FOLDER NAME`.

Each model is loaded once and answers every suite that it has no results for. If one model fails, that is recorded and
the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attrs import asdict, frozen

from modelwright.core.api import files
from modelwright.core.api.components import Engine, EngineSpec, Metric, MetricSpec
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.api.records import Example, Figure, Output, Score
from modelwright.core.chat.renderer import Renderer, checked_renderer
from modelwright.core.config.components import metric_with_options
from modelwright.core.config.schema import EvalConfig, SuiteConfig
from modelwright.core.models.adapters import load_engine
from modelwright.core.models.hf_folder import folder_context
from modelwright.core.runs.worker import Worker, work
from modelwright.core.stages.evaluate.generate import CachedEngine, generate
from modelwright.core.stages.evaluate.suites import ENGINE, read_suite, with_answer
from modelwright.core.stages.evaluate.work_list import (
    RESULTS,
    STAGE,
    Failure,
    ListedModel,
    Task,
    WorkList,
    add_failure,
    read_failures,
    read_work_config,
    read_work_list,
    write_current,
)

PROGRESS_SECONDS = 0.5

Record = TypeVar("Record")
Emit = Callable[[str, Mapping[str, Any]], None]


@frozen(kw_only=True)
class LoadedModel:
    """A model that is ready to answer.

    Attributes:
        engine: it is loaded there.
        renderer: its own.
        context: its context in tokens; None means no limit.
    """

    engine: Engine
    renderer: Renderer
    context: int | None


def grade(
    worker: Worker[EvalConfig],
    loaded: LoadedModel,
    suite: SuiteConfig,
    examples: Sequence[Example],
    task: Task,
    emit: Emit,
) -> None:
    """Ask a model all examples of a suite and grade its answers.

    Args:
        worker: the process.
        loaded: the model.
        suite: how to ask.
        examples: of the suite, each with its reference answer.
        task: where the results go; they appear whole or not at all.
        emit: writes an event.

    Raises:
        StopRequested: someone asked to stop; the answers so far are kept.
        ModelwrightError: a prompt does not fit, or a metric failed.
    """
    emit("suite", {"suite": suite.name, "examples": len(examples)})
    begin = time.monotonic()
    outputs = _ask(worker, loaded, suite, examples, task, emit)
    generated = time.monotonic() - begin
    scores, metrics = _score(worker, suite, examples, outputs)
    results = {
        "suite": suite.name,
        "fingerprint": task.fingerprint,
        "examples": len(examples),
        "metrics": metrics,
        "verdicts": {name: dict(Counter(score.verdict for score in graded)) for name, graded in scores.items()},
        "finishes": dict(Counter(output.finish for answers in outputs for output in answers)),
        "generating_seconds": round(generated, 3),
    }
    with files.writing_folder(task.folder) as folder:
        samples = folder / task.samples.name
        with samples.open("w", encoding="utf-8") as file:
            for number, (example, answers) in enumerate(zip(examples, outputs, strict=True)):
                graded = {name: asdict(given[number]) for name, given in scores.items()}
                row = {"example": example.to_row(), "outputs": [asdict(output) for output in answers], "scores": graded}
                file.write(files.json_line(row))
        files.write_json(folder / RESULTS, results | {"samples_size": samples.stat().st_size})
    emit("graded", {"suite": suite.name, "metrics": metrics})


def _ask(
    worker: Worker[EvalConfig],
    loaded: LoadedModel,
    suite: SuiteConfig,
    examples: Sequence[Example],
    task: Task,
    emit: Emit,
) -> list[tuple[Output, ...]]:
    last = time.monotonic()

    def progress(finished: int) -> None:
        nonlocal last
        worker.folder.check_stop()
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            emit("answered", {"suite": suite.name, "answered": finished, "examples": len(examples)})

    cached = CachedEngine(loaded.engine, task.answers, task.answers_fingerprint)
    with contextlib.closing(cached):
        return asyncio.run(
            generate(
                cached,
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


Examples = Callable[[SuiteConfig], Sequence[Example]]


def evaluate(worker: Worker[EvalConfig]) -> dict[str, Any]:
    """Grade every task of the work list that has no results and has not failed."""
    root = worker.folder.stage(STAGE)
    work_list = read_work_list(root)
    assert work_list is not None
    suites = {suite.name: suite for suite in worker.config.evaluate}
    failures = read_failures(root)

    @functools.cache
    def examples(name: str) -> Sequence[Example]:
        suite = suites[name]
        return [with_answer(example) for example in read_suite(suite, worker.plugins, seed=worker.config.seed)]

    for model in work_list.models:
        left = [
            suite
            for suite in worker.config.evaluate
            if work_list.task(root, model, suite.name).results() is None
            and not any(failure.is_of(model, suite.name) for failure in failures)
        ]
        if left:
            worker.folder.check_stop()
            _grade_model(worker, work_list, model, left, lambda suite: examples(suite.name))
    return {}


def _grade_model(
    worker: Worker[EvalConfig],
    work_list: WorkList,
    model: ListedModel,
    suites: Sequence[SuiteConfig],
    examples: Examples,
) -> None:
    root, folder = worker.folder.stage(STAGE), Path(model.folder)
    emit = _naming(worker.emit, model)
    write_current(root, model, None)
    with _isolated(root, model, None, emit):
        renderer = checked_renderer(folder)
        spec = worker.plugins.get(EngineSpec, ENGINE)
        engine: Engine = spec.create()
        with contextlib.closing(engine):
            load_engine(engine, spec, folder, Path(model.base) if model.base else None)
            loaded = LoadedModel(engine=engine, renderer=renderer, context=folder_context(folder))
            for suite in suites:
                worker.folder.check_stop()
                write_current(root, model, suite.name)
                with _isolated(root, model, suite.name, emit):
                    grade(worker, loaded, suite, examples(suite), work_list.task(root, model, suite.name), emit)


def _naming(emit: Emit, model: ListedModel) -> Emit:
    """Events that say which model they are about, where there is more than a run's own."""
    if not model.place:
        return emit

    def named(kind: str, data: Mapping[str, Any]) -> None:
        emit(kind, {"model": model.address, **data})

    return named


@contextlib.contextmanager
def _isolated(root: Path, model: ListedModel, suite: str | None, emit: Emit) -> Iterator[None]:
    """Note what goes wrong, and go on; only a stop request passes."""
    try:
        yield
    except StopRequested:
        raise
    except Exception as error:  # noqa: BLE001 - one model's error must not cost the others their results
        if not isinstance(error, ModelwrightError):
            traceback.print_exc()
        text = str(error) if isinstance(error, ModelwrightError) else f"{type(error).__name__}: {error}"
        add_failure(root, Failure(model=model.address, suite=suite, error=text))
        emit("failed", {"suite": suite, "error": text})


if __name__ == "__main__":
    work(STAGE, evaluate, read_work_config)
