"""Conversations of one shape are laid out once; the result is what each gets when it is laid out by itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.core.api import Message
from modelwright.core.chat.renderer import TemplateRefusedError

TEMPLATES = ("chatml", "llama3", "gemma", "mistral", "qwen3", "channels")

words = st.sampled_from(["", " ", "four", " four\n", "Text", "é日", "</think>", "<|im_end|>", "<|im", "end|>", "a < b"])
messages = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant", "assistant"]),
        content=words,
        thinking=st.none() | words,
        train_thinking=st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def outcome(renderer, lay_out, *arguments):
    """The layout and the tokens; protected parts without control tokens make no difference."""
    try:
        layout = lay_out(*arguments)
    except TemplateRefusedError as error:
        return str(error)
    encoded = renderer._tokenizer.encode(layout.text, layout.protected)
    return layout.text, layout.stretches, layout.prompts, layout.anomalies, layout.controls, encoded.ids


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(conversations=st.lists(messages, min_size=1, max_size=4), data=st.data())
def test_a_cached_shape_gives_the_same_layout(make_renderer, template, conversations, data):
    """With any texts, and after any other shapes."""
    renderer = make_renderer(template)
    for conversation in conversations:
        wanted = sorted(data.draw(st.sets(st.sampled_from(range(len(conversation))))))
        quick = outcome(renderer, renderer._laid_out, conversation, None, wanted)
        assert quick == outcome(renderer, renderer._layouts._alone, conversation, None, wanted)


def test_a_shape_is_laid_out_once(make_renderer, monkeypatch):
    """Of a hundred questions and answers, only the first."""
    renderer = make_renderer("chatml")
    renderer._laid_out([Message(role="user", content="one"), Message(role="assistant", content="two")], None, [1])
    monkeypatch.setattr(renderer._layouts, "_alone", None)
    for number in range(100):
        question, answered = Message(role="user", content=f"{number}?"), Message(role="assistant", content=f"{number}!")
        assert renderer._laid_out([question, answered], None, [1]).text.count(str(number)) == 2
