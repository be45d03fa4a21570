"""An evaluation without a run: registered models, test sets, and a folder for the results.

OUTPUT/
├── results.json        everything measured, for programs (`core.stages.evaluate.results` says what is in it)
├── report.md           the same for people, with a few wrong answers of each model
├── samples.jsonl       one line for each model, suite and example: the example, the outputs, the scores
└── .work/              a run's folder (`core.runs.folder`): locks, events, the worker's log, and each pair's results
    ├── models.json     which versions the addresses stood for when the evaluation began
    └── evaluate/       see `core.stages.evaluate.work_list`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError, RegistryError, SeveralErrors, UsageError
from modelwright.core.api.files import absolute, why_no_file, why_no_folder
from modelwright.core.api.records import Figure
from modelwright.core.api.registry import ModelVersion
from modelwright.core.config.schema import EvalConfig
from modelwright.core.plugins import Plugins
from modelwright.core.registry import open_registry
from modelwright.core.runs.events import EventWriter
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.stage import Listener
from modelwright.core.runs.supervisor import stop_on_signals
from modelwright.core.stages.evaluate.models import Chosen, Models, raise_all
from modelwright.core.stages.evaluate.report import REPORT, write_report
from modelwright.core.stages.evaluate.results import RESULTS, SAMPLES, collect, describe
from modelwright.core.stages.evaluate.stage import carry_out, ordered
from modelwright.core.stages.evaluate.suites import looks
from modelwright.core.stages.evaluate.work_list import STAGE, Failure, Order, Pair, folder_name, make_order

if TYPE_CHECKING:
    from modelwright.core.api.components import Registry

WORK = ".work"


@frozen(kw_only=True)
class PlannedPair:
    """A model with a suite, and whether its results are there already."""

    model: str
    suite: str
    done: bool


@define(slots=False)
class Evaluation:
    """An evaluation, ready to be checked, planned and carried out.

    Attributes:
        config: which models, which suites, how.
        plugins: those that the configuration admits.
        output: the folder for the results.
        registry_url: where the models are.
        workers_lock: the descriptor that worker processes inherit; None while nothing may be written.
        listener: hears every event.
    """

    config: EvalConfig
    plugins: Plugins
    output: Path
    registry_url: str
    workers_lock: int | None = None
    listener: Listener | None = None

    @cached_property
    def registry(self) -> Registry:
        """The registry, opened on first use."""
        return open_registry(self.registry_url, self.plugins)

    @cached_property
    def folder(self) -> RunFolder:
        """Where it works."""
        return RunFolder(self.output / WORK, self.output.name)

    @property
    def writing(self) -> int:
        """The workers' lock."""
        assert self.workers_lock is not None
        return self.workers_lock

    @property
    def root(self) -> Path:
        """Where the pairs' results are."""
        return self.folder.stage(STAGE)

    @property
    def models(self) -> Models:
        """Which versions are meant."""
        return Models(
            registry=self.registry,
            url=self.registry_url,
            asked=self.config.models,
            pins=self.folder.path / "models.json",
        )


def open_evaluation(
    config: EvalConfig,
    plugins: Plugins,
    *,
    output: Path,
    registry: str | None = None,
    listener: Listener | None = None,
) -> Evaluation:
    """An evaluation of a resolved configuration.

    Args:
        config: resolved.
        plugins: those that it admits.
        output: the folder for the results; made where it is missing.
        registry: the URL from the command line; it goes before the configuration's and the environment's.
        listener: hears every event.
    """
    return Evaluation(
        config=config,
        plugins=plugins,
        output=absolute(output),
        registry_url=home.registry_url(registry or config.registry.url),
        listener=listener,
    )


def check(evaluation: Evaluation, *, fresh: bool = False) -> None:
    """Find what is wrong before anything starts; nothing is written.

    Args:
        evaluation: from `open_evaluation`.
        fresh: what an earlier evaluation left in the folder does not count.

    Raises:
        ModelwrightError: an output folder, component, data file or model that cannot be used; as `SeveralErrors` where
            there is more than one.
    """
    errors: dict[str, ModelwrightError] = {}
    suites = looks(evaluation.config.evaluate, evaluation.plugins, seed=evaluation.config.seed)
    # Where the folder is none of ours, nothing in it says which models an evaluation began with.
    models = lambda: evaluation.models.choose(fresh=fresh or bool(errors))  # noqa: E731 - one of several looks
    for look in (lambda: _check_output(evaluation), models, *suites):
        try:
            look()
        except ModelwrightError as error:
            for one in error.errors if isinstance(error, SeveralErrors) else (error,):
                errors.setdefault(str(one), one)
    raise_all(list(errors.values()))


def _check_output(evaluation: Evaluation) -> None:
    """Refuse a folder that is not ours to write in."""
    output = evaluation.output
    if why := why_no_folder(output):
        raise UsageError(f"output {output} {why}: give a folder, new or empty")
    if not output.exists():
        return
    try:
        held = sorted(path.name for path in output.iterdir())
    except OSError as error:
        raise UsageError(f"output {output} cannot be read: {error.strerror}") from error
    if held and not (output / WORK).is_dir():
        raise UsageError(
            f"output {output} holds other files ({held[0]}): give a folder that is new, empty, or an earlier "
            "evaluation's"
        )
    for name in (RESULTS, REPORT, SAMPLES):
        if why := why_no_file(output / name):
            raise UsageError(f"output {output / name} {why}: move it away, or give another folder")
    evaluation.folder.check(STAGE)


def plan(evaluation: Evaluation, *, fresh: bool = False) -> list[PlannedPair]:
    """What `execute` would do now; nothing is written."""
    order, failures = _order(evaluation, evaluation.models.choose(fresh=fresh))
    done = [
        PlannedPair(model=pair.model.address, suite=pair.suite, done=not fresh and pair.results() is not None)
        for pair in order.pairs(evaluation.root)
    ]
    absent = [
        PlannedPair(model=failure.model, suite=suite, done=False) for failure in failures for suite in order.suites
    ]
    return done + absent


def _order(evaluation: Evaluation, chosen: Sequence[Chosen]) -> tuple[Order, list[Failure]]:
    """The worker's order, and the models whose files the registry cannot give."""
    models, failures = [], []
    for one in chosen:
        model = one.model
        try:
            models.append(ordered(evaluation.registry, model, place=folder_name(model.address)))
        except ModelwrightError as error:
            failures.append(Failure(model=model.address, suite=None, error=str(error)))
    return make_order(evaluation.config, models, evaluation.plugins), failures


def execute(evaluation: Evaluation, *, fresh: bool = False) -> dict[str, Any]:
    """Grade every model on every suite, record the figures, write the results; what is done already is kept.

    The registry and the three files hear of it at the end, when all is graded that can be.

    Args:
        evaluation: from `open_evaluation`, checked.
        fresh: forget what an earlier evaluation left in the folder.

    Returns:
        What results.json holds; what could not be graded is listed there under "failed".

    Raises:
        StopRequested: someone asked to stop; the same call resumes it.
        ModelwrightError: another process works in the folder, or it cannot be written.
    """
    begun = datetime.now(UTC)
    try:
        evaluation.folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output {evaluation.output} cannot be written: {error.strerror}") from error
    with evaluation.folder.locked() as lock:
        evaluation.workers_lock = lock
        evaluation.folder.clear_stop()
        with stop_on_signals(evaluation.folder):
            for folder in (evaluation.output, evaluation.folder.path):
                files.remove_temporaries(folder)
            if fresh:
                evaluation.folder.forget(STAGE)
                evaluation.models.forget()
            chosen = evaluation.models.choose()
            evaluation.models.pin(chosen, finished=False)
            results = _carry_out(evaluation, chosen, begun)
            evaluation.models.pin(chosen, finished=True)
    return results


def _carry_out(evaluation: Evaluation, chosen: Sequence[Chosen], begun: datetime) -> dict[str, Any]:
    events = EventWriter(evaluation.folder.events, run=evaluation.folder.name, stage=STAGE)

    def emit(kind: str, data: Mapping[str, Any]) -> None:
        event = events.emit(kind, data)
        if evaluation.listener:
            evaluation.listener(event)

    try:
        for one in chosen:
            if len(one.asked) > 1:
                emit("notice", {"text": f"{' and '.join(one.asked)} are the same model, {one.model.address}"})
        order, failures = _order(evaluation, chosen)
        failures += carry_out(evaluation, order, emit) if order.models else []
        pairs = [pair for pair in order.pairs(evaluation.root) if pair.results() is not None]
        for one in chosen:
            failures += _record(evaluation, one.model, [p for p in pairs if p.model.address == one.model.address], emit)
        emit("ended", {"state": "done"})
    finally:
        events.close()
    with files.failing_as(f"output {evaluation.output} cannot be written"):
        collected = collect(pairs, evaluation.output)
        results = describe(evaluation.config, chosen, collected, failures, evaluation.plugins, begun=begun)
        write_report(evaluation.output, results, collected)
        files.write_json(evaluation.output / RESULTS, results)
    return results


def _record(evaluation: Evaluation, model: ModelVersion, pairs: Sequence[Pair], emit: Any) -> Iterator[Failure]:
    """Put a model's figures into the registry, where they are not there yet."""
    for pair in pairs:
        results = pair.results()
        assert results is not None
        metrics = {name: Figure(**figure) for name, figure in results["metrics"].items()}
        try:
            recorded = evaluation.registry.get(model.name, model.version).metrics.get(pair.suite, {})
            if any(recorded.get(name) != figure for name, figure in metrics.items()):
                evaluation.registry.add_metrics(model.name, model.version, pair.suite, metrics)
        except RegistryError as error:
            why = f"its figures cannot be recorded: {error}"
            emit("failed", {"model": model.address, "suite": pair.suite, "error": why})
            yield Failure(model=model.address, suite=pair.suite, error=why)
            continue
        replaced = [name for name, figure in metrics.items() if recorded.get(name, figure) != figure]
        if replaced:
            text = f"{model.address}: new figures replace the registry's of {pair.suite} ({', '.join(replaced)})"
            emit("notice", {"text": text})
