"""The evaluate stage: a worker grades the registered model, its figures go to the registry.

Below: how the models of several runs compare, such as those of a run file's variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.files import DamagedError
from modelwright.core.api.records import Figure, digest_json
from modelwright.core.api.registry import ModelVersion
from modelwright.core.config.components import metric_with_options
from modelwright.core.models.adapters import adapter_base
from modelwright.core.runs.stage import Run
from modelwright.core.runs.supervisor import Following, WorkerDiedError, run_worker, worker_command
from modelwright.core.stages.evaluate.results import Difference, Measured, differences
from modelwright.core.stages.evaluate.work_list import (
    RESULTS,
    STAGE,
    VERSION,
    Failure,
    ListedModel,
    Task,
    WorkList,
    add_failure,
    engine_origin,
    folder_name,
    forget_failures,
    make_work_list,
    of_run,
    read_current,
    read_failures,
    read_results,
    suites_inputs,
    write_work_list,
)

Emit = Callable[[str, Mapping[str, Any]], None]


class Evaluate:
    """A registered version to its metrics."""

    name = STAGE

    def inputs(self, run: Run) -> dict[str, Any]:
        """The model, the test sets' bytes and options, the plugins that read and grade them."""
        registered = run.outputs("register")
        return {
            "version": VERSION,
            "model": [registered["address"], registered["digest"]],
            "engine": engine_origin(run.plugins),
            "suites": suites_inputs(of_run(run.config, registered["address"]), run.plugins),
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """The first suite whose results are gone or damaged, in the run's folder or in the registry."""
        registered = run.outputs("register")
        recorded = run.registry.get(registered["name"], registered["version"]).metrics
        for suite in run.config.evaluate:
            if not set(suite.metrics) <= set(recorded.get(suite.name, {})):
                return f"the registry has no figures of {suite.name}"
            folder = run.folder.stage(self.name) / folder_name(suite.name)
            try:
                if read_results(folder) is None:
                    return f"{folder / RESULTS} is gone"
            except DamagedError as error:
                return f"{error.path} is damaged, {error.why}"
        return None

    def unfinished(self, run: Run, fingerprint: str) -> str | None:  # noqa: ARG002 - the protocol's signature
        """The suites that an interrupted evaluation has finished."""
        root = run.folder.stage(self.name)
        finished = [task.suite for task in self._work_list(run).tasks(root) if task.results()] if root.is_dir() else []
        return f"interrupted; {', '.join(finished)} finished" if finished else None

    def work(self, run: Run, fingerprint: str, emit: Emit) -> dict[str, Any]:  # noqa: ARG002 - the protocol's signature
        """Start the worker; record what it measured. Suites that have their results already keep them."""
        if not run.config.evaluate:
            return {"metrics": {}}
        work_list, root = self._work_list(run), run.folder.stage(self.name)
        failures = carry_out(run, work_list, emit)
        if failures:
            more = f" (and {len(failures) - 1} more suites failed)" if failures[1:] else ""
            raise ModelwrightError(f"{failures[0].error}{more}")
        registered = run.outputs("register")
        outputs: dict[str, Any] = {"metrics": {}}
        for task in work_list.tasks(root):
            results = task.results()
            assert results is not None, f"the worker left {task.suite} neither graded nor failed"
            metrics = {name: Figure(**figure) for name, figure in results["metrics"].items()}
            run.registry.add_metrics(registered["name"], registered["version"], task.suite, metrics)
            outputs["metrics"][task.suite] = results["metrics"]
        return outputs

    @classmethod
    def tasks(cls, run: Run) -> list[Task]:
        """The run's model with each suite."""
        return list(cls._work_list(run).tasks(run.folder.stage(cls.name)))

    @staticmethod
    def _work_list(run: Run) -> WorkList:
        registered = run.outputs("register")
        model = run.registry.get(registered["name"], registered["version"])
        return make_work_list(
            of_run(run.config, model.address), [listed_model(run.registry, model, place="")], run.plugins
        )


def listed_model(registry: Registry, model: ModelVersion, *, place: str) -> ListedModel:
    """A model as the work list has it.

    Raises:
        ModelwrightError: its files, or those of its base, cannot be had.
    """
    base = adapter_base(registry, model)
    return ListedModel(
        address=model.address,
        digest=model.digest,
        folder=str(registry.folder(model)),
        base=None if base is None else str(base.folder),
        place=place,
    )


def carry_out(run: Following, work_list: WorkList, emit: Emit) -> list[Failure]:
    """Have a worker grade a work list, and say what could not be graded; the results are in the tasks' folders.

    A worker that dies loses what it was at; another one goes on with the rest.

    Raises:
        StopRequested: someone asked to stop; carrying out the same work again resumes it.
        ModelwrightError: nothing could be begun.
    """
    root = run.folder.stage(STAGE)
    root.mkdir(parents=True, exist_ok=True)
    for place in (root, *(root / model.place for model in work_list.models if model.place)):
        if place.is_dir():
            files.remove_temporaries(place)
    write_work_list(root, work_list)
    forget_failures(root)
    for damage in filter(None, (task.damage() for task in work_list.tasks(root))):
        emit("notice", {"text": damage})
    left = [task for task in work_list.tasks(root) if task.results() is None]
    if not left:
        return []
    command = worker_command("modelwright.core.stages.evaluate.worker", run.folder)
    emit("starting", {"command": command, "log": str(run.folder.log(STAGE))})
    while True:
        try:
            run_worker(run, STAGE, command)
        except WorkerDiedError as error:
            current = read_current(root)
            if current is None:
                raise
            failure = Failure(model=current[0], suite=current[1], error=str(error))
            if failure in read_failures(root):
                raise  # it died without having gone on: another worker would do the same
            add_failure(root, failure)
        else:
            return read_failures(root)


@frozen(kw_only=True)
class Ranking:
    """The models of several runs on one suite by one metric.

    Attributes:
        suite: its name.
        metric: its label.
        leader: address of the model with the best figure.
        others: the figure of each other model less the leader's, on the same examples; the best first.
    """

    suite: str
    metric: str
    leader: str
    others: tuple[Difference, ...]


def rank(runs: Sequence[Run]) -> Iterator[Ranking]:
    """Compare the models of finished runs wherever two or more answered the same test set.

    Raises:
        DamagedError: samples are not what grading left there.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run in runs:
        for suite, inputs in suites_inputs(of_run(run.config, run.outputs("register")["address"]), run.plugins).items():
            groups.setdefault(digest_json([suite, inputs]), []).append((run, suite))
    for group in groups.values():
        if len(group) > 1:
            yield from _rankings(group)


def _rankings(group: Sequence[tuple[Run, str]]) -> Iterator[Ranking]:
    first, suite = group[0]
    scores = [_measured(run, suite) for run, _ in group]
    for metric in scores[0]:
        higher_is_better = metric_with_options(first.plugins, metric)[0].higher_is_better
        ranked = sorted((one[metric] for one in scores), key=lambda one: one.figure.value, reverse=higher_is_better)
        leader = ranked[0].model
        compared = differences([*ranked[1:], ranked[0]])
        others = tuple(each for each in compared if each.other == leader)
        yield Ranking(suite=suite, metric=metric, leader=leader, others=others)


def _measured(run: Run, suite: str) -> dict[str, Measured]:
    """What a finished run's model scored on a suite, by metric."""
    task = next(task for task in Evaluate.tasks(run) if task.suite == suite)
    results = read_results(task.folder)
    assert results is not None, "a finished evaluation has its results"
    values: dict[str, list[float]] = {metric: [] for metric in results["metrics"]}
    for row in files.read_rows(task.samples, ("scores",), remedy=f"remove {task.folder}, and evaluate again"):
        for metric, score in row["scores"].items():
            values[metric].append(score["value"])
    return {
        metric: Measured(model=task.model.address, figure=Figure(**figure), values=values[metric])
        for metric, figure in results["metrics"].items()
    }
