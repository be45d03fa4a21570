"""What a training leaves for people, from its events alone: report.md and a picture that needs nothing else."""

import xml.etree.ElementTree as ET

import pytest

from modelwright.core.runs.events import EventWriter, read_events
from modelwright.core.stages.train.report import POINTS, loss_curves, summary, write_report


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
        "| of them trained | 1,000 |",
        "| tokens a second | 2,000 |",
        "| MFU | 25.0% |",
        "| held-out loss | 1.0000 |",
        "| steps dropped | 1 |",
        "| most memory of the first process | 2.00 GB |",
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


def test_a_trainer_that_tells_nothing_has_a_report_all_the_same(tmp_path):
    """Plugins may emit what they like."""
    write_report(tmp_path, [])
    assert (tmp_path / "report.md").read_text().startswith("# Training")
    ET.parse(tmp_path / "loss.svg")


def test_the_registry_is_told_the_digest_of_the_events(events):
    """It changes with any event."""
    told = summary(events)
    assert told["tokens"] == 500_000
    assert told["processes"] == 2
    assert len(told["events"]) == 64
    assert told["events"] != summary(events[:-1])["events"]
