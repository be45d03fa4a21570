"""A streamed answer is the sum of its deltas."""

import pytest

from modelwright import Answer, Delta, Output, ThinkingSplitter


def test_deltas_add_up_to_the_output() -> None:
    answer = Answer()
    answer.add(Delta(text="4", token_ids=(1,), logprobs=(-0.5,)))
    assert answer.finish is None
    answer.add(Delta(text="2", token_ids=(2, 3), logprobs=(-0.25, -1.0)))
    answer.add(Delta(finish="stop"))
    assert answer.output() == Output(text="42", token_ids=(1, 2, 3), logprobs=(-0.5, -0.25, -1.0), finish="stop")


def test_without_requested_logprobs_there_are_none() -> None:
    answer = Answer()
    answer.add(Delta(text="4", token_ids=(1,), finish="length"))
    assert answer.output().logprobs is None


def test_requested_logprobs_of_no_tokens_are_empty() -> None:
    answer = Answer()
    answer.add(Delta(logprobs=(), finish="length"))
    assert answer.output().logprobs == ()


def test_each_delta_comes_back_with_its_thinking_separated() -> None:
    answer = Answer(splitter=ThinkingSplitter())
    texts = ("<thi", "nk>six times", " seven</th", "ink>\n\n4", "2")
    given = [answer.add(Delta(text=text)) for text in texts]
    given.append(answer.add(Delta(finish="stop")))
    assert ("".join(each.thinking for each in given), "".join(each.text for each in given)) == ("six times seven", "42")
    assert answer.output() == Output(text="42", thinking="six times seven", finish="stop")


def test_text_held_back_comes_with_the_last_delta() -> None:
    answer = Answer(splitter=ThinkingSplitter(inside=True))
    assert answer.add(Delta(text="still thinking </thi")).thinking == "still thinking"
    assert answer.add(Delta(text="s", finish="length")) == Delta(thinking=" </this", finish="length")


def test_an_unfinished_answer_has_no_output() -> None:
    answer = Answer()
    answer.add(Delta(text="4"))
    with pytest.raises(ValueError, match="finish"):
        answer.output()
