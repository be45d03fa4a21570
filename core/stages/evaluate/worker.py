"""The process that evaluates: `python -m modelwright.core.stages.evaluate.worker FOLDER NAME`.

Each model is loaded once and asked every suite that it has no results for. What one model cannot do is noted and costs
the others nothing.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelwright.core.api.components import Engine, EngineSpec
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.api.records import Example
from modelwright.core.chat.renderer import checked_renderer
from modelwright.core.config.schema import EvalConfig, SuiteConfig
from modelwright.core.models.adapters import load_engine
from modelwright.core.models.hf_folder import folder_context
from modelwright.core.runs.worker import Worker, work
from modelwright.core.stages.evaluate.grade import Emit, Loaded, grade
from modelwright.core.stages.evaluate.suites import ENGINE, read_suite, with_answer
from modelwright.core.stages.evaluate.work_list import (
    STAGE,
    Failure,
    Order,
    OrderedModel,
    add_failure,
    read_failures,
    read_order,
    read_order_config,
    write_current,
)

Examples = Callable[[SuiteConfig], Sequence[Example]]


def evaluate(worker: Worker[EvalConfig]) -> dict[str, Any]:
    """Grade every pair of the order that has no results and has not failed."""
    root = worker.folder.stage(STAGE)
    order = read_order(root)
    assert order is not None
    suites = {suite.name: suite for suite in worker.config.evaluate}
    failures = read_failures(root)

    @functools.cache
    def examples(name: str) -> Sequence[Example]:
        suite = suites[name]
        return [with_answer(example) for example in read_suite(suite, worker.plugins, seed=worker.config.seed)]

    for model in order.models:
        left = [
            suite
            for suite in worker.config.evaluate
            if order.pair(root, model, suite.name).results() is None
            and not any(failure.is_of(model, suite.name) for failure in failures)
        ]
        if left:
            worker.folder.check_stop()
            _grade_model(worker, order, model, left, lambda suite: examples(suite.name))
    return {}


def _grade_model(
    worker: Worker[EvalConfig], order: Order, model: OrderedModel, suites: Sequence[SuiteConfig], examples: Examples
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
            loaded = Loaded(engine=engine, renderer=renderer, context=folder_context(folder))
            for suite in suites:
                worker.folder.check_stop()
                write_current(root, model, suite.name)
                with _isolated(root, model, suite.name, emit):
                    grade(worker, loaded, suite, examples(suite), order.pair(root, model, suite.name), emit)


def _naming(emit: Emit, model: OrderedModel) -> Emit:
    """Events that say which model they are about, where there is more than a run's own."""
    if not model.place:
        return emit

    def named(kind: str, data: Mapping[str, Any]) -> None:
        emit(kind, {"model": model.address, **data})

    return named


@contextlib.contextmanager
def _isolated(root: Path, model: OrderedModel, suite: str | None, emit: Emit) -> Iterator[None]:
    """Note what goes wrong, and go on; only a stop request passes."""
    try:
        yield
    except StopRequested:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, the other models must not lose their results by it
        if not isinstance(error, ModelwrightError):
            traceback.print_exc()
        text = str(error) if isinstance(error, ModelwrightError) else f"{type(error).__name__}: {error}"
        add_failure(root, Failure(model=model.address, suite=suite, error=text))
        emit("failed", {"suite": suite, "error": text})


if __name__ == "__main__":
    work(STAGE, evaluate, read_order_config)
