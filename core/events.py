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

from attrs import asdict, frozen

VERSION = 1


@frozen(kw_only=True)
class Event:
    """One line of an events file.

    Attributes:
        v: the envelope's version.
        time: when, in UTC, ISO 8601.
        run: the run's name.
        stage: the stage that it belongs to.
        writer: the file that it stands in; a resumed stage has a new one.
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


class EventWriter:
    """Appends one process's events to a file of its own.

    Every line is handed to the operating system at once: a killed process loses none, a machine without power may.
    """

    def __init__(self, folder: Path, *, run: str, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.stage = stage
        self.writer = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{stage}-{os.getpid()}"
        self._file = (folder / f"{self.writer}.jsonl").open("a", encoding="utf-8", buffering=1)

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
        """The events written since the last call, in the order of their times; an unfinished line waits."""
        events: list[Event] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            end = text.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + end
            events += (Event(**json.loads(line)) for line in text[:end].splitlines())
        return sorted(events, key=lambda event: event.time)


def read_events(folder: Path, *, stage: str | None = None) -> list[Event]:
    """Every event of a run in order of time, without what a resumed stage did over again.

    A `resumed` event with a `step` says that its writer begins after that step: what earlier writers of the same stage
    said of later steps is dropped.
    """
    events = [event for event in EventTail(folder).poll() if stage in (None, event.stage)]
    return list(_without_repeats(events))


def _without_repeats(events: list[Event]) -> Iterator[Event]:
    resumed = [event for event in events if event.kind == "resumed" and "step" in event.data]
    for event in events:
        step = event.data.get("step")
        repeated = step is not None and any(
            later.stage == event.stage
            and later.writer != event.writer
            and later.time >= event.time
            and step > later.data["step"]
            for later in resumed
        )
        if not repeated:
            yield event
