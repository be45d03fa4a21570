"""Thinking and answers are parted the same way in streams, in whole outputs and in training data."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.answers import THINK_CLOSE, THINK_OPEN, ThinkingSplitter, split_thinking


@pytest.mark.parametrize(
    ("text", "inside", "thinking", "answer"),
    [
        ("<think>\ntwo and two\n</think>\n\n4", False, "two and two", "4"),
        (" \n<think>two</think>4\n", False, "two", "4\n"),
        ("two and two\n</think>\n\n4", True, "two and two", "4"),
        ("<think>\ntwo</think>4", True, "two", "4"),
        ("4", False, None, "4"),
        ("  4\n", False, None, "  4\n"),
        ("", False, None, ""),
        ("", True, None, ""),
        (" \n", True, None, ""),
        ("two and tw", True, "two and tw", ""),
        ("<think>two and \n", False, "two and", ""),
        ("<think>two </thin", False, "two </thin", ""),
        ("<think>\n\n</think>\n\n4", False, None, "4"),
        ("<think>", False, None, ""),
        ("<thin", False, None, "<thin"),
        ("<thin", True, "<thin", ""),
        ("The tag is <think>, closed by </think>.", False, None, "The tag is <think>, closed by </think>."),
        ("two</think>4", False, None, "two</think>4"),
        ("<think>a</think>b<think>c</think>d", False, "a", "b<think>c</think>d"),
        ("<think>a < b <think></think>c", False, "a < b <think>", "c"),
        ("<think>a</think>", False, "a", ""),
    ],
)
def test_a_text_is_parted_at_its_tags(text, inside, thinking, answer):
    """Thinking comes first; a text without it is the answer itself; thinking that is never closed is not an answer."""
    assert split_thinking(text, inside=inside) == (thinking, answer)


def test_a_stream_holds_back_only_what_is_uncertain():
    """A reader sees words as they come, and never a part of a tag."""
    splitter = ThinkingSplitter()
    pieces = [
        splitter.feed(text) for text in ("<thi", "nk>\n", "two ", "and <", "b", " </", "think", ">\n", "\n 4", " ")
    ]
    assert pieces == [
        ("", ""),
        ("", ""),
        ("two", ""),
        (" and", ""),
        (" <b", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("", "4"),
        ("", " "),
    ]
    assert splitter.finish() == ("", "")


fragments = st.lists(
    st.sampled_from(
        [THINK_OPEN, THINK_CLOSE, "<", "<th", "ink>", "</", "</think", ">", " ", "\n", "\n\n", "a", "word", "é", "4."]
    ),
    max_size=12,
).map("".join)


@given(text=fragments, inside=st.booleans(), cuts=st.lists(st.integers(0, 60)))
def test_piece_by_piece_is_the_same_as_at_once(text, inside, cuts):
    """Wherever the pieces end."""
    splitter = ThinkingSplitter(inside=inside)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [splitter.feed(text[start:end]) for start, end in itertools.pairwise(places)]
    pieces.append(splitter.finish())
    thinking, answer = ("".join(part) for part in zip(*pieces, strict=True))
    assert (thinking or None, answer) == split_thinking(text, inside=inside)


@given(text=fragments, inside=st.booleans())
def test_nothing_is_lost_but_the_tags_and_the_white_space_around_them(text, inside):
    """What is thought and what is answered is the whole text, in order."""
    thinking, answer = split_thinking(text, inside=inside)

    def bare(part):
        return "".join(part.split())

    if bare(text) != bare((thinking or "") + answer):
        before, closed, after = text.lstrip().removeprefix(THINK_OPEN).partition(THINK_CLOSE)
        assert (bare(thinking or ""), bare(answer)) == (bare(before), bare(after) if closed else "")
    if thinking is not None:
        assert thinking == thinking.strip() != ""
