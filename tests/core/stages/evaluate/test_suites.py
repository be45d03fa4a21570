"""Test sets: the prompt is all that precedes the answer."""

from __future__ import annotations

from modelwright import Example, Message
from modelwright.core.stages.evaluate.suites import prompt_messages, seeds, with_answer


def _example(*turns, answer=None):
    return Example(messages=[Message(role=role, content=text) for role, text in turns], answer=answer)


TURNS = (("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))


def test_the_prompt_ends_before_the_last_answer():
    """Earlier answers are part of it."""
    assert [message.content for message in prompt_messages(_example(*TURNS))] == ["s", "q1", "a1", "q2"]
    assert [message.content for message in prompt_messages(_example(*TURNS[:2]))] == ["s", "q1"]
    assert prompt_messages(_example(("assistant", "a"))) == ()


def test_the_reference_is_the_answer_or_what_the_assistant_says_last():
    """A format need not repeat it."""
    assert with_answer(_example(*TURNS)).answer == "a2"
    assert with_answer(_example(*TURNS, answer="42")).answer == "42"
    assert with_answer(_example(*TURNS[:2])).answer is None


def test_a_samples_seed_is_its_own_and_always_the_same():
    """In any order of the examples."""
    one, other = (list(seeds(_example(*turns), 3, 7)) for turns in (TURNS, TURNS[:4]))
    assert one == list(seeds(_example(*TURNS), 3, 7))
    assert len({*one, *other}) == 6
