"""Which stages are done and which would run, and why; and performing one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from modelwright.core.api.files import DamagedError
from modelwright.core.api.records import digest_json
from modelwright.core.runs.allocation import allocation
from modelwright.core.runs.events import EventWriter
from modelwright.core.runs.folder import Done
from modelwright.core.runs.stage import Run, Stage


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
