"""One part of a run's data, prepared by a job of its own: side by side with others, which may be on other machines.

What it makes is kept in the store, where the preparation that merges the parts finds it. The stage is not marked as
done, and nothing of the run's folder is written but events and `parts/I-of-N`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.runs.allocation import allocation
from modelwright.core.runs.events import EventWriter
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.stage import Run
from modelwright.core.runs.supervisor import stop_on_signals
from modelwright.core.stages.prepare import reading
from modelwright.core.stages.prepare.cache import Store, naming_full_disk
from modelwright.core.stages.prepare.preparation import base_renderer, pool_of, reading_job
from modelwright.core.stages.prepare.renderings import RenderAhead
from modelwright.core.stages.prepare.shards import Part, shards_of

STAGE = "prepare"

Emit = Callable[[str, Mapping[str, Any]], None]


def prepare_part(run: Run, part: Part) -> dict[str, Any]:
    """Read the shards of a part, and render what may stay of them where the tokenizer is known: that of a base.

    Any number of parts are prepared at once. One that was killed or stopped goes on where it was.

    Args:
        run: from `open_run`, checked.
        part: which one.

    Returns:
        What was done: `part`, as I/N; `shards`, how many are in it; `of`, how many there are; `rows` and `examples`.

    Raises:
        StopRequested: someone asked this job to stop; the same call resumes it.
        ModelwrightError: it failed.
    """
    cache = home.cache()
    folder = run.folder.part(part.number, part.of)
    with files.failing_as(f"{folder.path} cannot be made"):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.path.touch()  # the part that was begun last says how many there are
    folder.clear_stop()
    events = EventWriter(run.folder.events, run=run.config.name, stage=STAGE)

    def emit(kind: str, data: Mapping[str, Any]) -> None:
        event = events.emit(kind, {"part": str(part), **data})
        if run.listener:
            run.listener(event)

    try:
        emit("begun", {})
        if job := allocation():
            emit("job", {"job": job.job, "nodes": job.node_list, "restarts": job.restarts})
        try:
            with stop_on_signals(folder), naming_full_disk(cache), Store(cache).locked(sweep=False) as store:
                done = _prepare(run, part, folder, store, emit)
        except Exception as error:
            emit("ended", {"state": type(error).__name__, "error": str(error)})
            raise
        emit("part", done)
        emit("ended", {"state": "done"})
    finally:
        events.close()
    return {"part": str(part), **done}


def _prepare(run: Run, part: Part, folder: RunFolder, store: Store, emit: Emit) -> dict[str, Any]:
    config = run.config
    found = 0

    def passed() -> None:
        nonlocal found
        found += 1

    with pool_of(run, store) as pool:
        mine = shards_of(part, config.data.sources, config.seed, passed)
        entries: list[Path] = []
        examples: list[int] = []
        rows = 0
        for entry in pool.ordered(reading_job(run, store), mine, folder.check_stop):
            assert entry is not None, "a job that makes what is missing leaves nothing out"
            facts = files.read_json(entry / reading.FACTS)
            entries.append(entry)
            examples.append(len(facts["ids"]))
            rows += facts["rows"]
            emit("reading", {"rows": rows})
        renderer = base_renderer(run) if entries else None
        if renderer is not None:
            tokenizer = folder.path / "tokenizer"
            renderer.save(tokenizer)
            job = RenderAhead(tokenizer, renderer.fingerprint, config.data.tokens.turns, store)
            rendered = pool.ordered(job, entries, folder.check_stop)
            for done, _ in zip(itertools.accumulate(examples), rendered, strict=True):
                emit("rendering", {"rendered": done, "examples": sum(examples)})
    return {"shards": len(entries), "of": found, "rows": rows, "examples": sum(examples)}
