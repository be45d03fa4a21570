"""Runs the stages of a run.toml in order: finished ones are skipped, interrupted ones are resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.errors import UsageError, raise_errors
from modelwright.core.config import to_plain
from modelwright.core.config.schema import RunConfig
from modelwright.core.plugins import Plugins
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.plan import Step, perform, plan, state
from modelwright.core.runs.stage import Listener, Run, Stage, forget_base, pin_base
from modelwright.core.runs.supervisor import stop_on_signals
from modelwright.core.stages.evaluate.stage import Evaluate
from modelwright.core.stages.prepare.stage import Prepare
from modelwright.core.stages.promote import Promote
from modelwright.core.stages.register import Register
from modelwright.core.stages.requirements import requirements, unmet
from modelwright.core.stages.train.stage import Train
from modelwright.core.stages.train.verify_resume import Verification, verify_resume

STAGES: tuple[Stage, ...] = (Prepare(), Train(), Register(), Evaluate(), Promote())
NAMES = tuple(stage.name for stage in STAGES)


@frozen(kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        run: the run.
        outputs: of each stage that is done, by its name.
        performed: the stages that this call ran.
    """

    run: Run
    outputs: Mapping[str, Mapping[str, Any]]
    performed: Sequence[str]


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


def check(runs: Sequence[Run], stages: Sequence[str] = NAMES, *, registry: bool = True) -> None:
    """Check before anything starts that the runs find all that they need; nothing is written.

    Args:
        runs: from `open_run`.
        stages: the stages that are to be done.
        registry: whether the registry must answer, even if only later stages use it.

    Raises:
        ModelwrightError: a package, component, base, chat template, registry, data file, or disk space or memory is
            missing; as `SeveralErrors` if more than one is.
    """
    raise_errors(unmet(one for run in runs for one in requirements(run, stages, registry=registry)))


def plan_run(run: Run, *, only: str | None = None, fresh: bool = False) -> list[Step]:
    """What `execute` would do now, stage by stage; nothing is written.

    Raises:
        UsageError: as `execute`.
    """
    chosen = _chosen(run, only)
    if only:
        _predecessors_are_done(run, chosen[0])
    if fresh:
        return [Step(stage=stage.name, done=False, why="starts over (--fresh)") for stage in chosen]
    return [step for step in plan(run, _stages(run)) if only in (None, step.stage)]


def _stages(run: Run) -> list[Stage]:
    return [stage for stage in STAGES if run.has(stage.name)]


def _chosen(run: Run, only: str | None) -> list[Stage]:
    return [stage for stage in _stages(run) if only in (None, stage.name)]


def execute(run: Run, *, only: str | None = None, fresh: bool = False) -> Result:
    """Do what is not done yet.

    Args:
        run: from `open_run`, checked.
        only: this stage alone, one that the run has.
        fresh: forget what was done before (of `only`, if given); registered models stay.

    Raises:
        UsageError: `only` names a stage whose predecessors are not done.
        StopRequested: someone asked the run to stop; the same call resumes it.
        ModelwrightError: a stage failed, or another process works in the run's folder.
    """
    chosen, performed = _chosen(run, only), []
    with run.folder.locked() as lock:
        run.workers_lock, run.fresh = lock, fresh
        run.folder.clear_stop()
        with stop_on_signals(run.folder):
            files.remove_temporaries(run.folder.path)
            if only:
                _predecessors_are_done(run, chosen[0])
            if fresh:
                _forget(run, chosen)
            files.write_json(run.folder.config, to_plain(run.config))
            if run.config.model.base and run.base:
                pin_base(run.config.model.base, run.base, run.folder)
            for stage in chosen:
                run.folder.check_stop()
                step = state(run, stage)
                if step.gone:
                    run.folder.forget(stage.name)
                if not step.done:
                    # Later stages depend on what is made again here, even if their inputs look the same.
                    for later in _stages(run)[_stages(run).index(stage) :]:
                        run.folder.unmark(later.name)
                    perform(run, stage, step.inputs)
                    performed.append(stage.name)
    outputs = {stage.name: run.outputs(stage.name) for stage in _up_to(run, chosen[-1])}
    return Result(run=run, outputs=outputs, performed=performed)


def verify(run: Run) -> Verification:
    """See whether the run's training resumes exactly, in folders beside its own, which is not touched.

    Args:
        run: from `open_run`, checked.

    Raises:
        UsageError: the tokens are not prepared.
        StopRequested: someone asked to stop.
        ModelwrightError: a training failed by itself, or another process works in the run's folder.
    """
    (train,) = _chosen(run, "train")
    with run.folder.locked() as lock:
        run.workers_lock = lock
        run.folder.clear_stop()
        _predecessors_are_done(run, train)
        return verify_resume(run)


def _forget(run: Run, stages: Sequence[Stage]) -> None:
    for stage in stages:
        run.folder.forget(stage.name)
    if stages[0] is _stages(run)[0]:
        forget_base(run.folder)
        run.__dict__.pop("base", None)


def _up_to(run: Run, stage: Stage) -> Sequence[Stage]:
    stages = _stages(run)
    return stages[: stages.index(stage) + 1]


def _predecessors_are_done(run: Run, stage: Stage) -> None:
    for earlier in _up_to(run, stage)[:-1]:
        step = state(run, earlier)
        if not step.done:
            raise UsageError(
                f"{run.config.name}: {stage.name} needs the stage {earlier.name} ({step.why}): run that first"
            )
