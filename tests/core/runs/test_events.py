"""Events: torn lines wait, and what a resumed stage did over again is dropped."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path

from modelwright.core.runs import events
from modelwright.core.runs.events import KINDS, EventTail, EventWriter, read_events


def test_a_tail_gives_each_event_once_and_waits_for_a_line_to_end(tmp_path):
    """The runner reads while a worker writes."""
    writer, tail = EventWriter(tmp_path, run="r", stage="train"), EventTail(tmp_path)
    writer.emit("step", {"step": 1})
    assert [event.data["step"] for event in tail.poll()] == [1]
    path = next(tmp_path.glob("*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert tail.poll() == []
    path.write_bytes(whole + whole)
    assert [event.data["step"] for event in tail.poll()] == [1]


def test_the_envelope_says_who_wrote_what_and_when(tmp_path):
    """Readers of other versions recognise it by `v`."""
    event = EventWriter(tmp_path, run="r", stage="train").emit("started", {"steps": 3})
    assert read_events(tmp_path) == [event]
    assert (event.v, event.run, event.stage, event.kind, event.data) == (1, "r", "train", "started", {"steps": 3})
    assert "train" in event.writer


def test_readers_drop_the_steps_that_a_resumed_worker_repeats(tmp_path):
    """A killed worker got to step 5, its last checkpoint was step 3."""
    killed = EventWriter(tmp_path, run="r", stage="train")
    for step in range(1, 6):
        killed.emit("step", {"step": step, "by": "killed"})
    resumed = EventWriter(tmp_path, run="r", stage="train")
    resumed.emit("started", {"steps": 6})
    resumed.emit("resumed", {"step": 3})
    for step in range(4, 7):
        resumed.emit("step", {"step": step, "by": "resumed"})
    steps = [(event.data["step"], event.data["by"]) for event in read_events(tmp_path) if event.kind == "step"]
    assert steps == [(1, "killed"), (2, "killed"), (3, "killed"), (4, "resumed"), (5, "resumed"), (6, "resumed")]


def test_another_stages_steps_are_its_own(tmp_path):
    """Resuming one stage says nothing of another."""
    EventWriter(tmp_path, run="r", stage="evaluate").emit("step", {"step": 9})
    EventWriter(tmp_path, run="r", stage="train").emit("resumed", {"step": 3})
    assert [event.data for event in read_events(tmp_path) if event.kind == "step"] == [{"step": 9}]
    assert [event.data for event in read_events(tmp_path, stage="evaluate")] == [{"step": 9}]


def test_a_training_that_starts_over_leaves_nothing_of_the_one_before(tmp_path):
    """A loss curve is of one training."""
    for steps in (5, 2):
        writer = EventWriter(tmp_path, run="r", stage="train", role="worker")
        writer.emit("started", {"steps": steps})
        for step in range(1, steps + 1):
            writer.emit("step", {"step": step, "of": steps})
    steps = [event.data for event in read_events(tmp_path, stage="train") if event.kind == "step"]
    assert steps == [{"step": 1, "of": 2}, {"step": 2, "of": 2}]


def test_lines_of_another_version_are_left_to_its_readers(tmp_path):
    """A newer Modelwright may write what this one does not know."""
    event = EventWriter(tmp_path, run="r", stage="train").emit("started")
    (tmp_path / "20990101T000000.0-train-worker-1.jsonl").write_text('{"v": 2, "what": "ever"}\n')
    assert read_events(tmp_path) == [event]


def test_writers_of_one_number_on_two_machines_have_a_file_each(tmp_path, monkeypatch):
    """A stopped clock replaces a rare coincidence: both begin in one microsecond."""
    times = iter([datetime(2026, 1, 1, tzinfo=UTC)] * 2)

    class Clock:
        def now(self, zone):
            return next(times, datetime.now(zone))

    monkeypatch.setattr(events, "datetime", Clock())
    writers = {EventWriter(tmp_path, run="r", stage="prepare").writer for _ in range(2)}
    assert {f"{writer}.jsonl" for writer in writers} == {path.name for path in tmp_path.iterdir()}
    assert len(writers) == 2


REPOSITORY = Path(__file__).parents[3]


def test_every_event_of_a_run_has_exactly_the_fields_that_are_declared(finished_home):
    """The reference is made from the declaration: it must be what a run writes."""
    events = EventTail(finished_home / "runs" / "tiny" / "events").poll()
    assert {"begun", "prepared", "started", "step", "finished", "registered", "graded", "promoted", "ended"} <= {
        event.kind for event in events
    }
    for event in events:
        kind = KINDS[event.kind]
        assert not kind.fields.keys() - event.data.keys(), event
        assert not event.data.keys() - kind.fields.keys() - kind.sometimes.keys(), event


def _emitted(tree: ast.AST):
    """The kinds of events in calls of `emit`."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and len(call.args) == 2:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name.lstrip("_") == "emit":
                yield from (
                    node.value
                    for node in ast.walk(call.args[0])
                    if isinstance(node, ast.Constant) and isinstance(node.value, str)
                )


def test_every_kind_of_event_is_declared_and_every_declared_kind_is_written():
    """Those too that a run of a few seconds does not write."""
    files = [file for folder in ("core", "plugins") for file in (REPOSITORY / folder).rglob("*.py")]
    assert {kind for file in files for kind in _emitted(ast.parse(file.read_text()))} == KINDS.keys()
