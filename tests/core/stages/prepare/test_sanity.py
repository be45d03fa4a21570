"""Texts that are too short, repeat themselves or are garbled go; what people write stays, in any language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright import Example, Message
from modelwright.core.stages.prepare.sanity import Length, Sanity, learnt


def example(answered, **more):
    asked = Message(role="user", content="q" * 99)
    return Example(messages=[asked, Message(role="assistant", content=answered, **more)])


def why(text):
    found = Sanity().look(Example(text=text))
    return found and found.reason


def test_only_what_may_be_learnt_is_looked_at():
    """The question may be as it likes."""
    assert learnt(example("so", thinking="hm")) == ["hm", "so"]
    assert learnt(example("so", train=False)) == []
    assert learnt(Example(text="plain")) == ["plain"]


@pytest.mark.parametrize(("size", "goes"), [(9, True), (10, False), (20, False), (21, True)])
def test_lengths_are_counted_in_characters_of_what_is_learnt(size, goes):
    """Both bounds are still allowed; it is said which one was passed."""
    removal = Length(10, 20).look(example("ä" * size))
    assert (removal is not None) == goes
    if goes:
        assert ("min_characters is 10" if size < 10 else "max_characters is 20") in removal.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I am sorry.\n" * 60, "59 of 60 lines were there before"),
        (" ".join(f"w{n} and so on" for n in range(60)), "'and so' stands 60 times in 240 words"),
        ("no no " * 80, "'no no' stands 159 times"),
        ("caf\ufffd " * 9, "9 of 45 characters are controls or stand for what could not be decoded"),
        ("\x00\x01 text", "2 of 7 characters"),
    ],
)
def test_what_repeats_itself_or_is_garbled_goes_with_what_it_was(text, reason):
    """The text stands beside it in removed.jsonl."""
    assert reason in why(text)
    assert Sanity().look(Example(text=text)).facts == {"text": text}


@pytest.mark.parametrize("text", ["", "5", "2 + 2 + 2 + 2 = 8", "no no no", "tab\there\r\n", "Ωμέγα\u200d 数学 👍"])
def test_short_and_foreign_texts_stay(text):
    """A worked sum repeats itself, too."""
    assert why(text) is None


@given(st.lists(st.integers(0, 10**6), min_size=120, max_size=200, unique=True))
def test_words_that_are_all_different_stay(numbers):
    """Whatever they are."""
    assert why(" ".join(map(str, numbers))) is None


def test_what_people_wrote_stays(shared_rows):
    """Of GSM8K's and MATH's solutions nearly nothing goes."""
    texts = [row["answer"] for row in shared_rows("gsm8k/train.jsonl")]
    texts += [row["solution"] for row in shared_rows("math/sample.jsonl")]
    gone = [text for text in texts if why(text)]
    assert len(gone) <= len(texts) / 1000, gone[:5]
