"""What a stage is, what it is given, and when it counts as done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field, frozen

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.files import DamagedError
from modelwright.core.api.records import digest_json
from modelwright.core.config.schema import RunConfig
from modelwright.core.models.base import Base, resolve_base
from modelwright.core.models.hf_folder import check_base_folder
from modelwright.core.plugins import Plugins
from modelwright.core.registry import naming, open_registry
from modelwright.core.runs.allocation import allocation
from modelwright.core.runs.events import Event, EventWriter
from modelwright.core.runs.folder import Done, RunFolder

if TYPE_CHECKING:
    from modelwright.core.api.components import Registry


def find_base(source: str, registry: Callable[[], Registry], run: RunFolder) -> Base:
    """The base that `[model] base` names, or what it stood for when the run began.

    A registry address and a hub id are resolved once for a run: an alias that moves later, perhaps by this very run's
    promotion, or a branch that grows, does not change what the run began from. `pin_base` keeps it, and where a
    registered model lies, so that a training on a cluster never asks the registry's database.

    Raises:
        UsageError, ModelNotFoundError, ModelwrightError: as `resolve_base`.
    """
    if Path(source).is_absolute():
        return resolve_base(source, registry)
    remedy = "remove it, and the base is looked up again"
    pinned = files.read_state(_pin(run), {"source": str, "address": str}, remedy=remedy)
    if pinned is None or pinned["source"] != source:
        return resolve_base(source, registry)
    if pinned.get("digest") and Path(pinned["folder"]).is_dir():
        check_base_folder(Path(pinned["folder"]), pinned["address"])
        return Base(folder=Path(pinned["folder"]), digest=pinned["digest"], parent=pinned["address"])
    return resolve_base(pinned["address"], registry)


def pin_base(source: str, base: Base, run: RunFolder) -> None:
    """Remember which version a registry address, or which commit a hub id, stood for when the run began."""
    if base.parent is None:
        return
    pinned = {"source": source, "address": base.parent}
    if "/" not in base.parent:  # the hub's cache is the hub's
        pinned |= {"folder": str(base.folder), "digest": base.digest}
    files.write_json(_pin(run), pinned)


def forget_base(run: RunFolder) -> None:
    """Resolve the address again next time."""
    _pin(run).unlink(missing_ok=True)


def _pin(run: RunFolder) -> Path:
    return run.path / "base.json"


Listener = Callable[[Event], None]


@define(slots=False)
class Run:
    """A run at work: what every stage is given.

    Attributes:
        config: the resolved configuration.
        folder: where the run lives.
        plugins: the plugins that the configuration admits.
        registry_url: where models are registered.
        workers_lock: the descriptor that worker processes inherit; None while nothing may be written (planning).
        listener: hears every event.
        fresh: whether nothing that was made before is used.
        merging: whether all rows must have been read before, by jobs that each did a part of them.
        gather: waits for the other processes of a launcher that started this program several times, and lets them start
            theirs of a training; it tells its argument whom it waits for. None where there are no others.
    """

    config: RunConfig
    folder: RunFolder
    plugins: Plugins
    registry_url: str
    workers_lock: int | None = None
    listener: Listener | None = None
    fresh: bool = False
    merging: bool = False
    gather: Callable[[Callable[[str], None]], None] | None = None

    @cached_property
    def registry(self) -> Registry:
        """The registry, opened on first use."""
        return open_registry(self.registry_url, self.plugins)

    @cached_property
    def base(self) -> Base | None:
        """What the training begins from; None where the model is made from scratch."""
        source = self.config.model.base
        if source is None:
            return None
        with naming(self.registry_url):
            return find_base(source, lambda: self.registry, self.folder)

    @property
    def writing(self) -> int:
        """The workers' lock; asking for it without holding it is a mistake in this program."""
        assert self.workers_lock is not None
        return self.workers_lock

    def outputs(self, stage: str) -> Mapping[str, Any]:
        """What a finished stage gave to those after it."""
        done = self.folder.done(stage)
        assert done is not None, f"outputs of {stage} were requested before it is done"
        return done.outputs


class Stage(Protocol):
    """One step of a run."""

    name: str

    def inputs(self, run: Run) -> dict[str, Any]:
        """All that the stage's result depends on, as JSON values; only asked when the stages before it are done."""
        ...

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:
        """What of a finished stage's results is gone or another, as a clause; None where all is there.

        Looks at names and sizes only: it is asked at every run.
        """
        ...

    def unfinished(self, run: Run, fingerprint: str) -> str | None:
        """Where an interrupted stage would resume, in words; None where it begins from nothing."""
        ...

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:
        """Do the stage and return its outputs.

        Raises:
            StopRequested: someone asked the run to stop.
            ModelwrightError: it failed.
        """
        ...


@frozen(kw_only=True)
class Step:
    """One line of a plan.

    Attributes:
        stage: its name.
        done: whether it is done.
        why: or why not.
        gone: whether it was done and what it made is not there any more, or not what it was.
        inputs: what its result depends on, where the stages before it are done.
    """

    stage: str
    done: bool
    why: str
    gone: bool = False
    inputs: Mapping[str, Any] = field(factory=dict, repr=False)


def plan(run: Run, stages: list[Stage]) -> Iterator[Step]:
    """What each stage would do now, without doing it."""
    waiting: str | None = None
    for stage in stages:
        if waiting:
            # Its inputs are not known before the stage that runs now has ended.
            yield Step(stage=stage.name, done=False, why=f"{waiting} runs first")
            continue
        step = state(run, stage)
        if not step.done:
            waiting = stage.name
        yield step


def state(run: Run, stage: Stage) -> Step:
    """Whether one stage is done; the stages before it are."""
    run.folder.check(stage.name)
    inputs = stage.inputs(run)
    fingerprint = digest_json(inputs)
    done, damaged = _mark(run, stage)
    finished, gone = False, None
    if done is None:
        why = damaged or stage.unfinished(run, fingerprint) or "not done yet"
    elif done.fingerprint != fingerprint:
        why = f"changed: {', '.join(_changes(done.inputs, inputs)) or 'all inputs'}"
    elif gone := stage.missing(run, done.outputs):
        why = gone
    else:
        finished, why = True, "done, and its inputs have not changed"
    return Step(stage=stage.name, done=finished, why=why, gone=gone is not None, inputs=inputs)


def _mark(run: Run, stage: Stage) -> tuple[Done | None, str | None]:
    """A stage's mark, and what is wrong with it: then the stage is done again, which finds what it made and goes on."""
    try:
        return run.folder.done(stage.name), None
    except DamagedError as error:
        return None, f"{error.path} is damaged: {error.why}"


def perform(run: Run, stage: Stage, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Do one stage, whose inputs `state` gave, and mark it as done."""
    fingerprint = digest_json(inputs)
    events = EventWriter(run.folder.events, run=run.config.name, stage=stage.name)

    def emit(kind: str, data: Mapping[str, Any]) -> None:
        event = events.emit(kind, data)
        if run.listener:
            run.listener(event)

    try:
        emit("begun", {"fingerprint": fingerprint})
        if job := allocation():
            emit("job", {"job": job.job, "nodes": job.node_list, "restarts": job.restarts})
        try:
            outputs = stage.work(run, fingerprint, emit)
        except Exception as error:
            emit("ended", {"state": type(error).__name__, "error": str(error)})
            raise
        run.folder.mark_done(stage.name, Done(fingerprint=fingerprint, inputs=inputs, outputs=outputs))
        emit("ended", {"state": "done", "outputs": outputs})
    finally:
        events.close()
    return outputs


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys whose values differ."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changes(before, after, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
