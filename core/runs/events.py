"""A run's events: JSON lines with a versioned envelope, one file for each process that writes.

Progress on the terminal, loss curves and trackers all read these files; nothing else passes between the processes of a
run while they work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, fields_dict, frozen

from modelwright.core.api.files import appended_tables

VERSION = 1

# The roles of those who write.
RUNNER = "runner"
WORKER = "worker"


@frozen(kw_only=True)
class Event:
    """One line of an events file.

    Attributes:
        v: the envelope's version.
        time: when, in UTC, ISO 8601.
        run: the run's name.
        stage: the stage that it belongs to.
        writer: the file that it stands in, `TIME-STAGE-ROLE-PID`; a resumed stage has a new one.
        kind: what happened.
        data: the facts.
    """

    v: int
    time: str
    run: str
    stage: str
    writer: str
    kind: str
    data: Mapping[str, Any]

    @property
    def role(self) -> str:
        """Who wrote it: "runner" or "worker"."""
        return self.writer.split("-")[2]


_KEYS = frozenset(fields_dict(Event))


class EventWriter:
    """Appends one process's events to a file of its own.

    Every line is handed to the operating system at once: a killed process loses none, a machine without power may.
    """

    def __init__(self, folder: Path, *, run: str, stage: str, role: str = RUNNER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.stage = stage
        while True:
            self.writer = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{stage}-{role}-{os.getpid()}"
            try:
                self._file = (folder / f"{self.writer}.jsonl").open("x", encoding="utf-8", buffering=1)
            except FileExistsError:  # by a process of the same number on another machine
                continue
            break

    def emit(self, kind: str, data: Mapping[str, Any] | None = None) -> Event:
        """Write an event and return it."""
        event = Event(
            v=VERSION,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            run=self.run,
            stage=self.stage,
            writer=self.writer,
            kind=kind,
            data=dict(data or {}),
        )
        self._file.write(json.dumps(asdict(event), ensure_ascii=False) + "\n")
        return event

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EventTail:
    """Reads what is new in a folder of events files, each time it is asked."""

    def __init__(self, folder: Path, *, from_now: bool = False) -> None:
        self.folder = folder
        self._offsets: dict[Path, int] = {}
        if from_now:
            self._offsets = {path: path.stat().st_size for path in folder.glob("*.jsonl")}

    def poll(self) -> list[Event]:
        """The events written since the last call, in the order of their times; an unfinished line waits.

        A line that is no event, as a machine without power may leave, is passed over.
        """
        events: list[Event] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            end = text.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + end
            rows = appended_tables(text[:end])
            events += (Event(**row) for row in rows if row.get("v") == VERSION and row.keys() == _KEYS)
        return sorted(events, key=lambda event: event.time)


def read_events(folder: Path, *, stage: str | None = None) -> list[Event]:
    """Every event of a run in order of time, without what a later attempt at a stage did over again.

    A writer that says `resumed` goes on after the step that it names; one that says `started` alone begins at the
    beginning. What earlier writers of the same stage said of later steps is dropped.
    """
    events = list(_without_repeats(EventTail(folder).poll()))
    return [event for event in events if stage in (None, event.stage)]


def _without_repeats(events: list[Event]) -> Iterator[Event]:
    begins: dict[str, tuple[Event, int]] = {}
    for event in events:
        if event.kind == "resumed" or (event.kind == "started" and event.writer not in begins):
            begins[event.writer] = (event, event.data.get("step", 0))
    for event in events:
        step = event.data.get("step")
        repeated = step is not None and any(
            begin.stage == event.stage and begin.writer > event.writer and step > first
            for begin, first in begins.values()
        )
        if not repeated:
            yield event
