"""Paired comparison: what two models' answers to the same questions say about their difference."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.records import wilson
from modelwright.core.stages.evaluate.results import Measured, clearly_best, correlation, difference, differences

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=60)
PAIRS = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0])] * 2), min_size=1, max_size=60)


def _measured(model, values):
    return Measured(model=model, figure=wilson(sum(values) / len(values), len(values)), values=values)


@given(SCORES)
def test_the_same_scores_differ_by_nothing(values):
    """A model against itself: 0, and 0 is in the interval."""
    found = difference(_measured("a", values), _measured("b", values))
    assert found.value == 0
    assert found.low <= 0 <= found.high
    assert found.sign == 0
    assert found.n == len(values)


@given(PAIRS)
def test_the_other_way_round_it_is_the_negative(tasks):
    """Which model is named first does not matter; the difference is inside its interval."""
    one, other = (_measured(name, [task[index] for task in tasks]) for index, name in enumerate("ab"))
    there, back = difference(one, other), difference(other, one)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)
    assert there.low <= there.value <= there.high
    assert there.sign == -back.sign


@given(SCORES, SCORES)
def test_a_correlation_is_between_minus_one_and_one(one, other):
    """Also where a model scores the same everywhere, or rounding would go beyond."""
    n = min(len(one), len(other))
    assert -1 <= correlation(one[:n], other[:n]) <= 1
    assert correlation([1.0] * n, other[:n]) == 0


def test_pairing_tells_apart_what_separate_intervals_do_not():
    """Twelve questions that one model answers and the other does not, of 300 that both mostly answer alike."""
    better = _measured("better", [1.0] * 160 + [0.0] * 140)
    worse = _measured("worse", [1.0] * 148 + [0.0] * 152)
    assert worse.figure.high > better.figure.low
    assert difference(better, worse).sign == 1


def test_a_few_questions_do_not_make_a_winner():
    """Two of 300 answered by one model alone are chance."""
    better, worse = (_measured(str(k), [1.0] * (150 + k) + [0.0] * (150 - k)) for k in (2, 0))
    assert difference(better, worse).sign == 0


@pytest.mark.parametrize(
    ("both", "one_alone", "other_alone", "n"), [(0.5, 0.1, 0.05, 50), (0.9, 0.03, 0.01, 200), (0.2, 0.2, 0.1, 30)]
)
def test_the_interval_holds_the_truth_about_95_times_in_100(both, one_alone, other_alone, n):
    """In 1000 test sets drawn from known models."""
    draw = random.Random(7)
    kinds, weights = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)], [both, one_alone, other_alone]
    held = 0
    for _ in range(1000):
        tasks = draw.choices(kinds, [*weights, 1 - sum(weights)], k=n)
        found = difference(*(_measured(name, [task[index] for task in tasks]) for index, name in enumerate("ab")))
        held += found.low <= one_alone - other_alone <= found.high
    assert 0.92 <= held / 1000 <= 0.98


def test_the_best_is_marked_only_beyond_doubt():
    """It must beat each other one; in the metric's direction."""
    values = {"high": [1.0] * 90 + [0.0] * 10, "also": [0.0] * 10 + [1.0] * 90, "low": [1.0] * 20 + [0.0] * 80}
    measured = {name: _measured(name, each) for name, each in values.items()}

    def best(*names, higher=True):
        chosen = [measured[name] for name in names]
        figures = {each.model: each.figure.value for each in chosen}
        return clearly_best(figures, differences(chosen), higher_is_better=higher)

    assert best("low", "high") == "high"
    assert best("low", "high", higher=False) == "low"
    assert best("high", "also", "low") is None
    assert best("high", "also", "low", higher=False) == "low"
    assert best("high") is None


def test_scores_that_cannot_be_paired_are_refused():
    """Another number of examples is another test set."""
    with pytest.raises(ValueError, match="2 and 1 scores cannot be paired"):
        difference(_measured("a", [1.0, 0.0]), _measured("b", [1.0]))


def test_a_figure_that_is_not_a_number_is_not_compared():
    """A metric may give one where nothing could be measured."""
    odd = Measured(model="odd", figure=wilson(0.5, 2).__class__(value=float("nan"), low=0, high=1, n=2), values=[0, 1])
    assert differences([odd, _measured("b", [1.0, 0.0])]) == []
