"""A training's events for people: report.md, loss.svg, and TensorBoard's files, read back by its own reader."""

import xml.etree.ElementTree as ET

import pytest

from modelwright.core.runs.events import EventWriter, read_events
from modelwright.core.stages.train.report import POINTS, loss_curves, summary, with_tensorboard, write_report


@pytest.fixture
def events(tmp_path):
    """Of a training of 500 steps, one of them dropped, measured twice on held-out data."""
    writer = EventWriter(tmp_path / "events", run="one", stage="train", role="worker")
    writer.emit("started", {"device": "cpu", "processes": 2, "parameters": 1234567, "trainable": 1000})
    for step in range(1, 501):
        loss = None if step == 7 else 5.0 / step
        numbers = {"tokens": 1000, "seconds": 0.5, "mfu": 0.25, "memory": 2_000_000_000}
        writer.emit("step", {"step": step, "steps": 500, "loss": loss, **numbers})
    for step in (250, 500):
        writer.emit("holdout", {"step": step, "loss": 1.0})
    writer.emit("finished", {"step": 500, "tokens": 500_000, "loss": 0.01, "holdout_loss": 1.0, "skipped": 1})
    writer.close()
    return read_events(tmp_path / "events", stage="train")


def test_the_report_has_the_figures_and_the_picture(tmp_path, events):
    """Speed is that of the middle step; a row that nobody knows is left out."""
    write_report(tmp_path, events)
    report = (tmp_path / "report.md").read_text()
    for line in (
        "![Loss by step](loss.svg)",
        "| parameters | 1,234,567 |",
        "| trainable parameters | 1,000 |",
        "| tokens per second | 2,000 |",
        "| MFU | 25.0% |",
        "| held-out loss | 1.0000 |",
        "| dropped steps | 1 |",
        "| peak memory (first process) | 2.00 GB |",
    ):
        assert line in report.splitlines()
    assert "precision" not in report


def test_the_picture_is_svg_with_a_curve_for_each_kind_of_data(tmp_path, events):
    """Both curves are named, and every point lies inside."""
    write_report(tmp_path, events)
    root = ET.parse(tmp_path / "loss.svg").getroot()
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    lines = root.findall("{*}polyline")
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"training", "held out", "step", "0"} <= set(words)


def test_long_curves_are_thinned_and_keep_their_ends(events):
    """A dropped step without a loss has no point."""
    training, held_out = loss_curves(events)
    assert len(training.points) <= POINTS + 1
    assert training.points[0] == (1, 5.0)
    assert training.points[-1] == (500, 0.01)
    assert 7 not in [step for step, _ in training.points]
    assert held_out.points == [(250, 1.0), (500, 1.0)]


def test_a_trainer_that_reports_nothing_has_a_report_all_the_same(tmp_path):
    """Plugins may emit what they like."""
    write_report(tmp_path, [])
    assert (tmp_path / "report.md").read_text().startswith("# Training")
    ET.parse(tmp_path / "loss.svg")


def test_the_registry_gets_the_digest_of_the_events(events):
    """It changes with any event."""
    summed = summary(events)
    assert summed["tokens"] == 500_000
    assert summed["processes"] == 2
    assert len(summed["events"]) == 64
    assert summed["events"] != summary(events[:-1])["events"]


# TensorBoard


@pytest.fixture
def scalars(tmp_path):
    """Reads a curve that was drawn."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )

    def read(name):
        reader = accumulators.EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
        reader.Reload()
        return [(event.step, pytest.approx(event.value)) for event in reader.Scalars(name)]

    return read


def step(number, **more):
    return {"step": number, "steps": 9, "loss": 1.0 / number, "tokens": 100, "seconds": 0.5} | more


def test_steps_are_drawn_beside_the_events(tmp_path, scalars):
    """What is emitted is emitted as it was; figures that a step lacks are not drawn."""
    seen = []
    emit = with_tensorboard(lambda kind, _data: seen.append(kind), tmp_path)
    emit("started", {"steps": 9})
    for number in (1, 2):
        emit("step", step(number, by_source={"a.jsonl": 3.0}))
    emit("step", step(3, loss=None))
    emit("holdout", {"step": 3, "loss": 2.5})
    assert seen == ["started", "step", "step", "step", "holdout"]
    assert scalars("train/loss") == [(1, 1.0), (2, 0.5)]
    assert scalars("speed/tokens_per_second") == [(1, 200.0), (2, 200.0), (3, 200.0)]
    assert scalars("loss by source/a.jsonl") == [(1, 3.0), (2, 3.0)]
    assert scalars("holdout/loss") == [(3, 2.5)]


def test_steps_that_a_resumed_training_does_again_are_drawn_once(tmp_path, scalars):
    """The second attempt takes the place of the first from its first step on."""
    first = with_tensorboard(lambda _kind, _data: None, tmp_path)
    for number in (1, 2, 3):
        first("step", step(number, loss=9.0))
    first("holdout", {"step": 3, "loss": 1.0})
    second = with_tensorboard(lambda _kind, _data: None, tmp_path)
    for number in (2, 3):
        second("step", step(number))
    second("holdout", {"step": 3, "loss": 2.0})
    drawn = scalars("train/loss")
    assert [number for number, _ in drawn] == [1, 2, 3]
    assert drawn[1:] == [(2, 0.5), (3, 1 / 3)]
