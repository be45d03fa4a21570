"""What is left out before training, why, and that nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright import Example, Message
from modelwright.core.stages.prepare.decontaminate import Contamination

NATALIA = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
WORD = st.from_regex(r"[a-z]{3,9}", fullmatch=True)
SENTENCE = st.lists(WORD, min_size=8, max_size=30)


def example(question, answered="72", *, answer=None, source="train.jsonl:1", thinking=None):
    messages = [Message(role="user", content=question), Message(role="assistant", content=answered, thinking=thinking)]
    return Example(messages=messages, answer=answer, source=source)


def contamination(*question):
    check = Contamination()
    check.add("gsm8k", [example(text, source=f"test.jsonl:{n + 1}") for n, text in enumerate(question)])
    return check


@pytest.mark.parametrize(
    "text",
    [
        NATALIA,
        NATALIA.upper(),
        f"Solve the problem step by step.\n\n{NATALIA}\nThink.",
        NATALIA.replace("48", "$48$"),
        NATALIA.replace("altogether ", ""),
        NATALIA.partition(". ")[0] + ".",
    ],
)
def test_a_question_of_a_test_set_is_found_with_both_texts(text):
    """Whole, in other case, within an instruction, in LaTeX, with a word less, or its longer half."""
    found = contamination("What is 1 + 1?", NATALIA).check(example(text))
    assert found is not None
    assert found.facts["other"] == "test.jsonl:2"
    assert (found.facts["suite"], found.facts["question"]) == ("gsm8k", NATALIA)
    assert text in found.facts["text"]
    assert 0.5 < found.facts["overlap"] <= 1


def test_a_question_inside_an_answer_or_the_thinking_is_found():
    """Wherever the model would read it."""
    check = contamination(NATALIA)
    assert check.check(example("Give me a problem.", NATALIA))
    assert check.check(example("Give me a problem.", "No.", thinking=f"I remember: {NATALIA}"))


@pytest.mark.parametrize(
    "text",
    [
        "Natalia sold 48 clips.",
        NATALIA.replace("Natalia", "Tom").replace("clips", "cards").replace("April", "June").replace("May", "July"),
        "How many clips did Natalia sell altogether in April and May?",
        "",
    ],
)
def test_what_shares_only_a_little_stays(text):
    """A phrase, another story of the same kind, the smaller part of a question."""
    assert contamination(NATALIA).check(example(text)) is None


def test_short_questions_are_found_if_they_are_the_whole_question():
    """Three words occur in many texts."""
    check = contamination("What is 2 + 3?")
    assert check.check(example("what is $2 + 3$"))
    assert check.check(example("What is 2 + 3? And what is 4 + 5?")) is None


@given(st.lists(SENTENCE, min_size=1, max_size=5), st.data())
def test_every_question_is_found_within_any_text(questions, data):
    """Other words come before and after it."""
    check = contamination(*(" ".join(each) for each in questions))
    chosen = data.draw(st.integers(0, len(questions) - 1))
    before, after = data.draw(st.lists(WORD, max_size=9)), data.draw(st.lists(WORD, max_size=9))
    found = check.check(example(" ".join([*before, *questions[chosen], *after])))
    assert found is not None
    assert found.facts["overlap"] == 1.0


@given(SENTENCE, SENTENCE)
def test_texts_without_a_common_run_stay(question, other):
    """Single words are common to all texts."""
    apart = [word for pair in zip(question, (f"{word}x" for word in other), strict=False) for word in pair]
    assert contamination(" ".join(question)).check(example(" ".join(apart))) is None
