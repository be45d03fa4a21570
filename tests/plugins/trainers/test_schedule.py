"""The learning-rate schedules."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.plugins.trainers.loop import schedule_factor, share_of_steps

KINDS = ("cosine", "linear", "constant", "wsd")


@st.composite
def schedules(draw):
    steps, kind = draw(st.integers(1, 400)), draw(st.sampled_from(KINDS))
    warmup = draw(st.floats(0, 1))
    return {
        "steps": steps,
        "warmup": share_of_steps(steps, warmup),
        "cooldown": share_of_steps(steps, draw(st.floats(0, 1 - warmup))) if kind == "wsd" else 0,
        "schedule": kind,
        "least": draw(st.floats(0, 0.5)),
    }


def curve(schedule):
    return [schedule_factor(step, **schedule) for step in range(1, schedule["steps"] + 1)]


@given(schedules())
def test_no_step_is_wasted_on_a_rate_of_zero_nor_above_the_peak(schedule):
    """Every factor is above 0 and at most 1."""
    assert all(0 < value <= 1 for value in curve(schedule))


@given(schedules())
def test_the_warmup_rises_in_a_line_and_meets_the_peak_right_after(schedule):
    """Step k of W takes k / (W + 1) of the peak, and step W + 1 the peak itself."""
    values = curve(schedule)
    warmup = schedule["warmup"]
    assert values[:warmup] == pytest.approx([step / (warmup + 1) for step in range(1, warmup + 1)])
    if warmup < schedule["steps"]:
        assert values[warmup] == 1.0


@given(schedules())
def test_after_the_peak_the_rate_never_rises(schedule):
    """Cosine and linear fall strictly; constant stays, and wsd until its cooldown."""
    values = curve(schedule)[schedule["warmup"] :]
    if schedule["schedule"] == "wsd":
        stable = max(1, len(values) - schedule["cooldown"]) if values else 0
        assert set(values[:stable]) <= {1.0}
        values = values[max(0, stable - 1) :]
    if schedule["schedule"] == "constant":
        assert set(values) <= {1.0}
    else:
        assert all(later < earlier for earlier, later in itertools.pairwise(values))


@given(schedules())
def test_the_rate_has_no_jumps(schedule):
    """Between neighbours lies at most the steepest slope of the formula: pi / 2 over the decay's steps.

    The root of wsd falls fastest in its first step.
    """
    values = [0.0, *curve(schedule)]
    decay = schedule["steps"] - schedule["warmup"]
    steepest = max(1 / (schedule["warmup"] + 1), math.pi / 2 / max(1, decay))
    if schedule["schedule"] == "wsd":
        steepest = max(steepest, math.sqrt(1 / (min(schedule["cooldown"], max(0, decay - 1)) + 1)))
    assert all(abs(later - earlier) <= steepest + 1e-12 for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", [0.5, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("linear", [0.5, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_curves_have_their_shapes(kind, expected):
    """One warm-up step of five, then the shape that the name says."""
    assert curve({"steps": 5, "warmup": 1, "schedule": kind}) == pytest.approx(expected)
    least = [value if step <= 1 else 0.1 + 0.9 * value for step, value in enumerate(expected)]
    assert curve({"steps": 5, "warmup": 1, "schedule": kind, "least": 0.1}) == pytest.approx(least)


def test_wsd_stays_at_the_peak_until_its_cooldown():
    """Two steps of six fall by the root to a tenth, which they would reach one step later."""
    values = curve({"steps": 6, "warmup": 1, "cooldown": 2, "schedule": "wsd", "least": 0.1})
    falling = [0.1 + 0.9 * (1 - math.sqrt(share / 3)) for share in (1, 2)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 1.0, *falling])


@pytest.mark.parametrize(("steps", "share", "expected"), [(100, 0.03, 3), (10, 0.0, 0), (7, 1.0, 7), (1, 0.4, 0)])
def test_the_warmup_is_its_share_of_the_steps(steps, share, expected):
    """Rounded to whole steps."""
    assert share_of_steps(steps, share) == expected
