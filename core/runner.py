"""A run.toml, stage after stage: what is done is skipped, what was interrupted is resumed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import FormatSpec, MetricSpec, TrainerSpec
from modelwright.core.api.errors import MissingDependencyError, UsageError
from modelwright.core.base import find_base
from modelwright.core.config import to_plain
from modelwright.core.config.schema import RunConfig, SourceConfig
from modelwright.core.evaluate.stage import Evaluate
from modelwright.core.plugins import Plugins
from modelwright.core.prepare.builtin import parse_builtin
from modelwright.core.prepare.sources import source_files
from modelwright.core.prepare.stage import Prepare
from modelwright.core.processes import stop_on_signals
from modelwright.core.promote import Promote
from modelwright.core.register import Register
from modelwright.core.registry import parse_condition
from modelwright.core.stage import Listener, Run, Stage, Step, perform, plan, state
from modelwright.core.train.launch import training_command
from modelwright.core.train.stage import Train
from modelwright.core.workspace import RunFolder

STAGES: tuple[Stage, ...] = (Prepare(), Train(), Register(), Evaluate(), Promote())
NAMES = tuple(stage.name for stage in STAGES)

# The packages of the extra `train` that a stage cannot do without; the import name of each is its own name.
_NEEDS = {
    "prepare": ("tokenizers", "jinja2", "pyarrow"),
    "train": ("torch", "transformers", "safetensors", "tokenizers", "jinja2", "pyarrow"),
    "evaluate": ("torch", "transformers", "tokenizers", "jinja2"),
}


@frozen(kw_only=True)
class Result:
    """What a run has come to: the outputs of each stage that is done, by its name."""

    run: Run
    outputs: Mapping[str, Mapping[str, Any]]


def open_run(
    config: RunConfig, plugins: Plugins, *, registry: str | None = None, listener: Listener | None = None
) -> Run:
    """A run of one variant, ready to plan or to work.

    Args:
        config: resolved.
        plugins: those that the configuration admits.
        registry: the URL from the command line; it goes before the configuration's and the environment's.
        listener: hears every event.
    """
    return Run(
        config=config,
        folder=RunFolder(home.runs() / config.name),
        plugins=plugins,
        registry_url=home.registry_url(registry or config.registry.url),
        listener=listener,
    )


def check(run: Run, stages: Sequence[str] = NAMES) -> None:
    """Find what is wrong before anything starts.

    Raises:
        UsageError: a package, file, base or process number that the stages cannot work with, or a promote condition
            that cannot be read.
    """
    for stage in stages:
        absent = [name for name in _NEEDS.get(stage, ()) if importlib.util.find_spec(name) is None]
        if absent:
            raise MissingDependencyError(
                f"{stage} needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed: "
                "pip install 'modelwright[train]'"
            )
    config = run.config
    trainer = run.plugins.get(TrainerSpec, config.train.trainer)
    training_command(trainer.launcher, config.train, run.folder)
    run.plugins.get(FormatSpec, config.data.format)
    for source in (*config.data.sources, *(SourceConfig(path=suite.path) for suite in config.evaluate)):
        if parse_builtin(source.path) is None:
            source_files(source)
    for suite in config.evaluate:
        for name in suite.metrics:
            _check_metric(run, suite.name, name)
    find_base(run)
    promote = config.registry.promote
    if promote and promote.condition:
        known = {f"{suite.name}.{metric}" for suite in config.evaluate for metric in suite.metrics}
        for clause in parse_condition(promote.condition).clauses:
            metric = f"{clause.suite}.{clause.metric}"
            if metric not in known:
                measured = ", ".join(sorted(known)) or "nothing"
                raise UsageError(f"[registry] promote: the run does not measure {metric!r} (it measures: {measured})")


def _check_metric(run: Run, suite: str, name: str) -> None:
    spec = run.plugins.get(MetricSpec, name)
    if spec.inputs != "text":
        raise UsageError(f"[[evaluate]] {suite}: metric {name!r} grades {spec.inputs}, which this version cannot give")


def plan_run(run: Run) -> list[Step]:
    """What `execute` would do now, stage by stage; nothing is written."""
    return list(plan(run, list(STAGES)))


def execute(run: Run, *, only: str | None = None, fresh: bool = False) -> Result:
    """Do what is not done yet.

    Args:
        run: from `open_run`, checked.
        only: this stage alone.
        fresh: forget what was done before (of `only`, if given); registered models stay.

    Raises:
        UsageError: `only` names a stage whose predecessors are not done.
        StopRequested: someone asked the run to stop; the same call resumes it.
        ModelwrightError: a stage failed, or another process works in the run's folder.
    """
    chosen = [stage for stage in STAGES if only in (None, stage.name)]
    with run.folder.locked() as lock:
        run.workers_lock = lock
        run.folder.clear_stop()
        with stop_on_signals(run.folder):
            for stage in chosen if fresh else ():
                run.folder.forget(stage.name)
            files.write_json(run.folder.config, to_plain(run.config))
            if only:
                _predecessors_are_done(run, chosen[0])
            for stage in chosen:
                run.folder.check_stop()
                if not state(run, stage).done:
                    perform(run, stage)
    return Result(run=run, outputs=dict(_outputs(run)))


def _predecessors_are_done(run: Run, stage: Stage) -> None:
    for earlier in STAGES[: STAGES.index(stage)]:
        step = state(run, earlier)
        if not step.done:
            raise UsageError(f"{run.config.name}: {earlier.name} comes before {stage.name} ({step.why}): run it first")


def _outputs(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in NAMES:
        done = run.folder.done(name)
        if done:
            yield name, done.outputs
