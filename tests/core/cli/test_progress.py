"""Progress: plain lines where nobody watches, bars that fit where somebody does, and never an end to the work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from modelwright.core.cli.progress import Display
from modelwright.core.runs.events import Event

STEP = {"step": 3, "steps": 9, "loss": 0.5, "tokens": 1000, "seconds": 0.5, "learning_rate": 1e-3}


def _event(kind, **data):
    writer = "20260101T000000.0-train-worker-1"
    return Event(v=1, time="", run="tiny", stage="train", writer=writer, kind=kind, data=data)


@pytest.fixture
def shown():
    def run(*events, terminal=False):
        file = io.StringIO()
        with Display(Console(file=file, force_terminal=terminal, width=80)) as display:
            for event in events:
                display(event)
        return file.getvalue()

    return run


def test_what_happened_stays_as_a_line(shown):
    """Who, which stage, what."""
    text = shown(
        _event("started", parameters=1234, device="cpu", steps=9),
        _event("graded", suite="sums", metrics={"exact_match": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}}),
    )
    assert text == (
        "tiny train    1,234 parameters on cpu, 9 steps\ntiny train    sums: exact_match 0.500 [0.250, 0.750]\n"
    )


def test_under_an_adapter_the_line_says_how_much_is_trained(shown):
    """Of the whole model it is all, and not said."""
    text = shown(
        _event("started", parameters=1234, trainable=56, device="cpu", steps=9),
        _event("started", parameters=1234, trainable=1234, device="cpu", steps=9),
    )
    assert text == (
        "tiny train    56 of 1,234 parameters on cpu, 9 steps\ntiny train    1,234 parameters on cpu, 9 steps\n"
    )


def test_an_evaluation_of_several_models_says_whose_figures_these_are(shown):
    """And what could not be graded, with its reason."""
    figures = {"exact_match": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}}
    text = shown(
        _event("graded", model="math@1", suite="sums", metrics=figures),
        _event("failed", model="math@2", suite="sums", error="the prompt is too long"),
        _event("failed", model="math@3", suite=None, error="no weights"),
        _event("failed", suite="sums", error="no memory"),
        _event("notice", text="something else"),
    )
    assert text.replace("tiny train    ", "").splitlines() == [
        "math@1 on sums: exact_match 0.500 [0.250, 0.750]",
        "math@2 on sums failed: the prompt is too long",
        "math@3 failed: no weights",
        "sums failed: no memory",
        "something else",
    ]


def test_steps_are_reported_now_and_then_without_a_terminal(shown, monkeypatch):
    """A log file is not a terminal."""
    assert shown(_event("step", **STEP), _event("step", **STEP)) == ""
    monkeypatch.setattr("modelwright.core.cli.progress.LINE_EVERY", 0.0)
    assert shown(_event("step", **STEP)) == "tiny train    3/9 loss 0.5000, 2,000 tokens/s\n"


def test_a_bar_fits_a_terminal_of_80_columns(shown):
    """And what it says last stays as a line."""
    text = shown(_event("step", **STEP), _event("finished", step=9), terminal=True)
    assert "3/9" in text
    assert "loss 0.5000, 2,000 tokens/s" in text
    assert "trained: loss 0.5000" in text


@pytest.mark.parametrize("data", [{}, {"step": 1}, {"step": 1, "steps": 2, "loss": "low", "tokens": 1, "seconds": 0}])
def test_an_event_that_lacks_what_is_shown_ends_nothing(shown, data):
    """A plugin's trainer says what it likes."""
    assert shown(_event("step", **data), _event("started", parameters=1, device="cpu", steps=1)).count("\n") == 1


def test_a_terminal_that_has_gone_ends_the_showing_and_not_the_work():
    """As when an ssh session closes: writing to it is an error from then on."""

    class Gone(io.StringIO):
        def write(self, _text):
            raise OSError(5, "Input/output error")

    with Display(Console(file=Gone(), force_terminal=False, width=80)) as display:
        for _ in range(3):
            display(_event("started", parameters=1, device="cpu", steps=1))
    assert display.console.quiet
