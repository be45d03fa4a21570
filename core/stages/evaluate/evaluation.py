"""An evaluation without a run: registered models, test sets, and a folder for the results.

OUTPUT/
├── results.json        everything measured, for programs (`core.stages.evaluate.results` says what is in it)
├── report.md           the same for people, with a few wrong answers of each model
├── samples.jsonl       one line for each model, suite and example: the example, the outputs, the scores
└── .work/              a run's folder (`core.runs.folder`): locks, events, the worker's log, and each task's results
    ├── models.json     which versions the addresses stood for when the evaluation began
    └── evaluate/       see `core.stages.evaluate.work_list`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import (
    ModelNotFoundError,
    ModelwrightError,
    RegistryError,
    SeveralErrors,
    UsageError,
    raise_errors,
)
from modelwright.core.api.files import DamagedError, absolute, why_no_file, why_no_folder
from modelwright.core.api.records import Figure
from modelwright.core.api.registry import ModelVersion
from modelwright.core.config.schema import EvalConfig
from modelwright.core.plugins import Plugins
from modelwright.core.registry import naming, open_registry, resolve
from modelwright.core.runs.events import EventWriter
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.stage import Listener
from modelwright.core.runs.supervisor import stop_on_signals
from modelwright.core.stages.evaluate.report import REPORT, write_report
from modelwright.core.stages.evaluate.results import RESULTS, SAMPLES, collect, describe
from modelwright.core.stages.evaluate.stage import carry_out, listed_model
from modelwright.core.stages.evaluate.suites import suite_checks
from modelwright.core.stages.evaluate.work_list import (
    STAGE,
    Chosen,
    Failure,
    Task,
    WorkList,
    folder_name,
    make_work_list,
)

if TYPE_CHECKING:
    from modelwright.core.api.components import Registry

_AGAIN = "remove it, and the models are looked up again"


@frozen(kw_only=True)
class Models:
    """The models of an evaluation.

    Attributes:
        registry: where they are.
        url: the registry's, for messages.
        requested: the addresses, or "all".
        pins: the file that remembers what they stood for when the evaluation began.
    """

    registry: Registry
    url: str
    requested: Sequence[str] | Literal["all"]
    pins: Path

    def choose(self, *, fresh: bool = False) -> list[Chosen]:
        """The versions to evaluate, each once even if several addresses name it; for "all", the newest of every model.

        An interrupted evaluation keeps the versions that it began with, though an alias may have moved since; not one
        that begins `fresh`.

        Raises:
            UsageError: an address is none; or several errors.
            ModelNotFoundError: there is no such model, or none at all.
            DamagedError: what an interrupted evaluation began with cannot be read.
        """
        pinned = None if fresh else self._pinned()
        return pinned or (self._newest() if self.requested == "all" else self._resolved())

    def pin(self, chosen: Sequence[Chosen], *, finished: bool) -> None:
        """Remember them; once `finished`, the addresses are resolved again."""
        models = [
            {
                "name": one.model.name,
                "version": one.model.version,
                "digest": one.model.digest,
                "requested": list(one.requested),
            }
            for one in chosen
        ]
        files.write_json(self.pins, {"requested": self._requested_names, "finished": finished, "models": models})

    def forget(self) -> None:
        """Resolve the addresses again next time."""
        self.pins.unlink(missing_ok=True)

    @property
    def _requested_names(self) -> Any:
        return self.requested if self.requested == "all" else list(self.requested)

    def _newest(self) -> list[Chosen]:
        newest: dict[str, ModelVersion] = {}
        for model in sorted(self.registry.find(), key=lambda model: (model.name, model.version)):
            newest[model.name] = model
        if not newest:
            raise ModelNotFoundError(f"there are no models to evaluate: the registry {self.url} is empty")
        return [Chosen(model=model, requested=(model.name,)) for model in newest.values()]

    def _resolved(self) -> list[Chosen]:
        errors: list[ModelwrightError] = []
        names: dict[str, tuple[ModelVersion, list[str]]] = {}
        for address in self.requested:
            try:
                with naming(self.url):
                    model = resolve(self.registry, address)
            except (UsageError, ModelNotFoundError) as error:
                errors.append(error)
                continue
            names.setdefault(model.address, (model, []))[1].append(address)
        raise_errors(errors)
        return [Chosen(model=model, requested=tuple(requested)) for model, requested in names.values()]

    def _pinned(self) -> list[Chosen] | None:
        pins = self._read_pins()
        if pins is None or pins["finished"] or pins["requested"] != self._requested_names:
            return None
        chosen = []
        for pin in pins["models"]:
            try:
                model = self.registry.get(pin["name"], pin["version"])
            except ModelNotFoundError:
                return None
            if model.digest != pin["digest"]:
                return None
            chosen.append(Chosen(model=model, requested=tuple(pin["requested"])))
        return chosen

    def _read_pins(self) -> Any:
        keys: Mapping[str, type | tuple[type, ...]] = {"requested": (str, list), "finished": bool, "models": list}
        pins = files.read_state(self.pins, keys, remedy=_AGAIN)
        for pin in pins["models"] if pins else ():
            if not isinstance(pin, dict) or not pin.keys() >= {"name", "version", "digest", "requested"}:
                raise DamagedError(self.pins, "its models are not as they were written", remedy=_AGAIN)
        return pins


WORK = ".work"


@frozen(kw_only=True)
class PlannedTask:
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
        """Where the tasks' results are."""
        return self.folder.stage(STAGE)

    @property
    def models(self) -> Models:
        """Which versions are meant."""
        return Models(
            registry=self.registry,
            url=self.registry_url,
            requested=self.config.models,
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
    suites = suite_checks(evaluation.config.evaluate, evaluation.plugins, seed=evaluation.config.seed)
    # Where the folder is none of ours, nothing in it says which models an evaluation began with.
    models = lambda: evaluation.models.choose(fresh=fresh or bool(errors))  # noqa: E731 - one of several looks
    for look in (lambda: _check_output(evaluation), models, *suites):
        try:
            look()
        except ModelwrightError as error:
            for one in error.errors if isinstance(error, SeveralErrors) else (error,):
                errors.setdefault(str(one), one)
    raise_errors(list(errors.values()))


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


def plan(evaluation: Evaluation, *, fresh: bool = False) -> list[PlannedTask]:
    """What `execute` would do now; nothing is written."""
    work_list, failures = _work_list(evaluation, evaluation.models.choose(fresh=fresh))
    done = [
        PlannedTask(model=task.model.address, suite=task.suite, done=not fresh and task.results() is not None)
        for task in work_list.tasks(evaluation.root)
    ]
    absent = [
        PlannedTask(model=failure.model, suite=suite, done=False) for failure in failures for suite in work_list.suites
    ]
    return done + absent


def _work_list(evaluation: Evaluation, chosen: Sequence[Chosen]) -> tuple[WorkList, list[Failure]]:
    """The worker's list, and the models whose files the registry cannot give."""
    models, failures = [], []
    for one in chosen:
        model = one.model
        try:
            models.append(listed_model(evaluation.registry, model, place=folder_name(model.address)))
        except ModelwrightError as error:
            failures.append(Failure(model=model.address, suite=None, error=str(error)))
    return make_work_list(evaluation.config, models, evaluation.plugins), failures


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
            if len(one.requested) > 1:
                emit("notice", {"text": f"{' and '.join(one.requested)} are the same model, {one.model.address}"})
        work_list, failures = _work_list(evaluation, chosen)
        failures += carry_out(evaluation, work_list, emit) if work_list.models else []
        tasks = [task for task in work_list.tasks(evaluation.root) if task.results() is not None]
        for one in chosen:
            failures += _record(evaluation, one.model, [p for p in tasks if p.model.address == one.model.address], emit)
        emit("ended", {"state": "done"})
    finally:
        events.close()
    with files.failing_as(f"output {evaluation.output} cannot be written"):
        collected = collect(tasks, evaluation.output)
        results = describe(evaluation.config, chosen, collected, failures, evaluation.plugins, begun=begun)
        write_report(evaluation.output, results, collected)
        files.write_json(evaluation.output / RESULTS, results)
    return results


def _record(evaluation: Evaluation, model: ModelVersion, tasks: Sequence[Task], emit: Any) -> Iterator[Failure]:
    """Put a model's figures into the registry, where they are not there yet."""
    for task in tasks:
        results = task.results()
        assert results is not None
        metrics = {name: Figure(**figure) for name, figure in results["metrics"].items()}
        try:
            recorded = evaluation.registry.get(model.name, model.version).metrics.get(task.suite, {})
            if any(recorded.get(name) != figure for name, figure in metrics.items()):
                evaluation.registry.add_metrics(model.name, model.version, task.suite, metrics)
        except RegistryError as error:
            why = f"its figures cannot be recorded: {error}"
            emit("failed", {"model": model.address, "suite": task.suite, "error": why})
            yield Failure(model=model.address, suite=task.suite, error=why)
            continue
        replaced = [name for name, figure in metrics.items() if recorded.get(name, figure) != figure]
        if replaced:
            text = f"{model.address}: replaced earlier figures of {task.suite} in the registry ({', '.join(replaced)})"
            emit("notice", {"text": text})
