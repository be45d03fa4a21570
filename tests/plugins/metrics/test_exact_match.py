from __future__ import annotations

import pytest

from modelwright import Example, Message, MetricSpec, Output
from modelwright.core.plugins import discover
from modelwright.plugins.metrics.grading import ExactMatch, ExactMatchOptions

PARIS = Example(messages=[Message(role="user", content="Capital?")], answer="Paris")


def grade(example, *texts, **options):
    return ExactMatch(ExactMatchOptions(**options)).score(example, [Output(text=text) for text in texts])


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Paris", "correct"),
        (" Paris\n", "correct"),
        ("paris", "wrong"),
        ("It is Paris", "wrong"),
        ("", "no_answer"),
        (" \n", "no_answer"),
        ("Par\0is\ud800", "wrong"),
    ],
)
def test_the_whole_output_must_be_the_answer(text, verdict):
    """White space around does not count; everything else does."""
    score = grade(PARIS, text)
    assert (score.verdict, score.value) == (verdict, float(verdict == "correct"))


def test_case_is_ignored_on_request():
    """`ignore_case` compares without case, in any script."""
    assert grade(PARIS, "PARIS", ignore_case=True).verdict == "correct"
    assert grade(Example(answer="Straße"), "STRASSE", ignore_case=True).verdict == "correct"


def test_several_outputs_count_with_their_share():
    """Of four samples, three right ones are worth three quarters, and the reason says so."""
    score = grade(PARIS, "Paris", "Rome", "Paris", "Paris")
    assert score.value == 0.75
    assert score.verdict == "wrong"
    assert score.reason == "3 of 4 outputs are correct; expected 'Paris', got 'Rome'"
    assert grade(PARIS, "Paris", "Paris").verdict == "correct"


def test_the_last_assistant_turn_is_the_reference_without_an_answer():
    """An example without an answer is graded against what the assistant says last."""
    turns = [Message(role="user", content="?"), Message(role="assistant", content="Paris ")]
    assert grade(Example(messages=turns), "Paris").verdict == "correct"


def test_nothing_to_grade_is_an_error_verdict():
    """No reference or no output counts as nothing and says why."""
    assert grade(Example(text="plain"), "Paris").verdict == "error"
    assert grade(PARIS).verdict == "error"
    assert grade(PARIS).value == 0.0


def test_the_figure_is_the_mean_with_its_wilson_interval():
    """Eight of ten is 0.8, between 0.490 and 0.943 (Wilson, 95 %)."""
    metric = ExactMatch(ExactMatchOptions())
    scores = [metric.score(PARIS, [Output(text="Paris" if i < 8 else "Rome")]) for i in range(10)]
    figure = metric.aggregate(scores)
    assert (figure.value, figure.n) == (0.8, 10)
    assert figure.low == pytest.approx(0.4902, abs=1e-4)
    assert figure.high == pytest.approx(0.9433, abs=1e-4)


def test_metrics_are_found_by_name():
    """Both metrics come in by the package's entry point and grade an output."""
    found = discover(strict=True)
    for name in ("exact_match", "math_accuracy"):
        metric = found.get(MetricSpec, name).create()
        assert metric.score(Example(answer="7"), [Output(text="7")]).verdict == "correct"
