"""An answer is the sum of its deltas."""

from __future__ import annotations

import pytest

from modelwright.core.api import Answer, Delta


def test_an_answer_adds_up_its_deltas():
    """Text, tokens and logprobs in order; the reason comes with the last."""
    answer = Answer()
    for delta in (
        Delta(text="It is", token_ids=(1, 2), logprobs=(-0.5, -0.25)),
        Delta(),
        Delta(text=" 3", token_ids=(3,), logprobs=(-1.0,), finish="stop"),
    ):
        answer.add(delta)
    output = answer.output()
    assert (output.text, output.token_ids, output.finish) == ("It is 3", (1, 2, 3), "stop")
    assert output.logprobs == (-0.5, -0.25, -1.0)


def test_an_answer_without_its_last_delta_is_not_an_output():
    """A stream that was cut short is not taken for an answer."""
    answer = Answer()
    answer.add(Delta(text="It"))
    assert answer.logprobs is None
    with pytest.raises(ValueError, match="finish"):
        answer.output()
