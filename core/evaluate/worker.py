"""The process that evaluates: `python -m modelwright.core.evaluate.worker RUN_FOLDER`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attrs import asdict

from modelwright.core.api import files
from modelwright.core.api.components import Engine, EngineSpec, MetricSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.records import Example, Figure, Output, Score
from modelwright.core.chat import Renderer, checked_renderer
from modelwright.core.config.schema import SuiteConfig
from modelwright.core.evaluate.generate import generate
from modelwright.core.evaluate.stage import ENGINE
from modelwright.core.evaluate.suites import read_suite, with_answer
from modelwright.core.model_folder import context_length
from modelwright.core.processes import Worker, work

PROGRESS_SECONDS = 0.5

Record = TypeVar("Record")


def evaluate(worker: Worker) -> dict[str, Any]:
    """Grade the model of the order on every suite that has no result yet."""
    folder = worker.folder.stage("evaluate")
    order = files.read_json(folder / "order.json")
    model = Path(order["model"])
    renderer = checked_renderer(model)
    left = [suite for suite in worker.config.evaluate if not (folder / suite.name / "results.json").is_file()]
    if left:
        engine: Engine = worker.plugins.get(EngineSpec, ENGINE).create()
        engine.load(model)
        try:
            for suite in left:
                worker.folder.check_stop()
                _grade(worker, engine, renderer, suite, context_length(model))
        finally:
            engine.close()
    results = {
        suite.name: files.read_json(folder / suite.name / "results.json")["metrics"] for suite in worker.config.evaluate
    }
    return {"metrics": results}


def _grade(worker: Worker, engine: Engine, renderer: Renderer, suite: SuiteConfig, context: int | None) -> None:
    examples = [with_answer(example) for example in read_suite(suite, worker.plugins, seed=worker.config.seed)]
    worker.emit("suite", {"suite": suite.name, "examples": len(examples)})
    begin = last = time.monotonic()

    def progress(finished: int) -> None:
        nonlocal last
        worker.folder.check_stop()
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            worker.emit("answered", {"suite": suite.name, "answered": finished, "examples": len(examples)})

    outputs = asyncio.run(
        generate(
            engine,
            renderer,
            examples,
            settings=suite.generation,
            samples=suite.samples,
            seed=worker.config.seed,
            context=context,
            progress=progress,
        )
    )
    generated = time.monotonic() - begin
    scores, metrics = _score(worker, suite, examples, outputs)
    results = {
        "suite": suite.name,
        "examples": len(examples),
        "metrics": metrics,
        "verdicts": {name: dict(Counter(score.verdict for score in graded)) for name, graded in scores.items()},
        "finishes": dict(Counter(output.finish for answers in outputs for output in answers)),
        "generating_seconds": round(generated, 3),
    }
    with files.writing_folder(worker.folder.stage("evaluate") / suite.name) as folder:
        with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
            for number, (example, answers) in enumerate(zip(examples, outputs, strict=True)):
                graded = {name: asdict(given[number]) for name, given in scores.items()}
                row = {"example": example.to_row(), "outputs": [asdict(output) for output in answers], "scores": graded}
                file.write(files.json_line(row))
        files.write_json(folder / "results.json", results)
    worker.emit("graded", {"suite": suite.name, "metrics": metrics})


def _score(
    worker: Worker, suite: SuiteConfig, examples: Sequence[Example], outputs: Sequence[Sequence[Output]]
) -> tuple[dict[str, list[Score]], dict[str, dict[str, float]]]:
    scores: dict[str, list[Score]] = {}
    figures: dict[str, dict[str, float]] = {}
    for name in suite.metrics:
        metric = worker.plugins.get(MetricSpec, name).create()
        graded: list[Score] = []
        for example, answers in zip(examples, outputs, strict=True):
            worker.folder.check_stop()
            with _blamed_on(f"metric {name!r} failed on {example.source}"):
                graded.append(_expect(Score, metric.score(example, answers)))
        scores[name] = graded
        with _blamed_on(f"metric {name!r} failed to aggregate {len(graded)} scores"):
            figures[name] = asdict(_expect(Figure, metric.aggregate(graded)))
    return scores, figures


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


if __name__ == "__main__":
    work("evaluate", evaluate)
