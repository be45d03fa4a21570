"""Records: identity by content, a faithful way through JSON, and the Wilson interval."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright import Example, Message, Score, wilson, wilson_mean

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=TEXT,
    thinking=st.none() | TEXT,
    train=st.none() | st.booleans(),
    train_thinking=st.booleans(),
)
EXAMPLES = st.builds(
    Example,
    messages=st.lists(MESSAGES, max_size=4),
    answer=st.none() | TEXT,
    choices=st.none() | st.lists(TEXT, max_size=3),
    text=st.none() | TEXT,
    source=TEXT,
    meta=st.dictionaries(TEXT, st.integers() | TEXT, max_size=2),
)


@given(EXAMPLES)
def test_an_example_comes_back_from_json_as_it_was(example):
    """JSONL is the interchange."""
    assert Example.from_row(json.loads(json.dumps(example.to_row()))) == example


@given(EXAMPLES, TEXT)
def test_the_id_is_of_the_content_alone(example, other):
    """Source and meta may differ; what is trained may not."""
    same = Example(
        messages=example.messages, answer=example.answer, choices=example.choices, text=example.text, source=other
    )
    changed = Example(
        messages=example.messages, answer=f"{example.answer}!", choices=example.choices, text=example.text
    )
    assert example.id == same.id != changed.id
    assert len(example.id) == 16


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_holds_the_share_and_stays_within_0_and_1(trial):
    """At 0 and at 1 too, where the normal approximation gives an empty interval."""
    right, n = trial
    figure = wilson(right / n, n)
    assert 0 <= figure.low <= figure.value + 1e-12
    assert figure.value - 1e-12 <= figure.high <= 1
    assert figure.high - figure.low > 0


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_the_wilson_interval_is_the_published_one(right, n, low, high):
    """81 of 263: R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    figure = wilson(right / n, n)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=5e-5)


def test_nothing_measured_is_nothing_known():
    """No scores: the interval is everything."""
    figure = wilson_mean([])
    assert (figure.low, figure.high, figure.n) == (0.0, 1.0, 0)
    assert wilson_mean([Score(value=1, verdict="correct"), Score(value=0, verdict="wrong")]).value == 0.5


@pytest.mark.parametrize("values", [{"role": "<|im_end|>", "content": "x"}, {"role": "user", "content": 5}])
def test_a_message_with_another_role_or_no_text_is_refused_where_it_is_made(values):
    """Not when a template meets it."""
    with pytest.raises((ValueError, TypeError), match=r"role|content"):
        Message(**values)


def test_a_wilson_interval_is_of_a_share():
    """A mean of anything else has another interval."""
    with pytest.raises(ValueError, match="between 0 and 1, not of 3"):
        wilson(3.0, 5)


def test_what_is_default_is_not_written():
    """A message's row says what is said, and a field that is added later changes no id."""
    example = Example(messages=[Message(role="assistant", content="4", thinking="so", train_thinking=False)])
    plain = Example(messages=[Message(role="assistant", content="4", thinking="so")])
    assert plain.to_row()["messages"] == [{"role": "assistant", "content": "4", "thinking": "so"}]
    assert example.to_row()["messages"] == [{**plain.to_row()["messages"][0], "train_thinking": False}]
    assert example.id != plain.id
