"""Thinking in training: trained or only seen; and whether a prompt opens it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import Example, Message

KINDS = ("byte_level", "unigram", "llama2", "words")
QUESTION = Message(role="user", content="What is 2 + 2?")

# As DeepSeek's and Qwen's thinking models: the generation prompt opens the thinking, and the last turn shows it.
OPENING = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '[A]' }}
        {%- if loop.last and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content + eos_token }}
    {%- else %}{{ '[U]' + message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[A]<think>\\n' }}{% endif %}
"""


def answered(content="It is 4.", thinking="two and two", **more):
    return Message(role="assistant", content=content, thinking=thinking, **more)


def trained_texts(native, renderer, rendered):
    tokenizer = native(renderer)
    runs = itertools.groupby(zip(rendered.ids, rendered.trained, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([n for n, _ in run], skip_special_tokens=False) for trained, run in runs if trained]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("template", "trained", "masked"),
    [
        ("chatml", "<think>\ntwo and two\n</think>\n\nIt is 4.<|im_end|>", "It is 4.<|im_end|>"),
        ("qwen3", "<think>\ntwo and two\n</think>\n\nIt is 4.<|im_end|>", "It is 4.<|im_end|>"),
        (OPENING, "two and two\n</think>\n\nIt is 4.</s>", "It is 4.</s>"),
        (
            "channels",
            (
                "<|channel|>analysis<|message|>two and two<|end|>"
                "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
            ),
            "It is 4.<|return|>",
        ),
    ],
    ids=["chatml", "qwen3", "opening", "channels"],
)
def test_masked_thinking_is_context_with_its_tags_and_only_the_answer_is_trained(
    make_renderer, native, template, trained, masked, kind
):
    """The tokens are the same; of the masked ones only the answer and its end are trained."""
    renderer = make_renderer(template, kind)
    (whole,) = renderer.train(Example(messages=(QUESTION, answered())))
    (seen,) = renderer.train(Example(messages=(QUESTION, answered(train_thinking=False))))
    assert (whole.ids, whole.text) == (seen.ids, seen.text)
    assert whole.anomalies == seen.anomalies == ()
    # Without white space: some tokenizers put a space after each control token.
    for rendered, expected in ((whole, trained), (seen, masked)):
        (text,) = trained_texts(native, renderer, rendered)
        assert "".join(text.split()) == "".join(expected.split())
    assert [span.kind for span in whole.spans] == ["thinking", "answer", "end"]
    assert list(seen.spans) == [span for span in whole.spans if span.kind != "thinking"]


def test_each_turn_decides_about_its_own_thinking(make_renderer, native):
    """One masked turn between two that are trained."""
    renderer = make_renderer("chatml")
    turns = (
        QUESTION,
        answered("a"),
        QUESTION,
        answered("b", train_thinking=False),
        QUESTION,
        answered("c", thinking=None),
    )
    (rendered,) = renderer.train(Example(messages=turns))
    assert trained_texts(native, renderer, rendered) == [
        "<think>\ntwo and two\n</think>\n\na<|im_end|>",
        "b<|im_end|>",
        "c<|im_end|>",
    ]
    split = renderer.train(Example(messages=turns), "split")
    assert trained_texts(native, renderer, split[1]) == ["b<|im_end|>"]


@pytest.mark.parametrize("template", ["mistral", "r1", "llama3"])
def test_masked_thinking_that_a_template_drops_is_reported_all_the_same(make_renderer, template):
    """The answer would be trained without what it was thought from."""
    (rendered,) = make_renderer(template, "words").train(Example(messages=(QUESTION, answered(train_thinking=False))))
    assert rendered.anomalies == ("thinking-dropped",)


def test_masked_thinking_without_an_answer_trains_the_end_alone(make_renderer, native):
    """Nothing was said."""
    renderer = make_renderer("chatml")
    (rendered,) = renderer.train(Example(messages=(QUESTION, answered("", train_thinking=False))))
    assert trained_texts(native, renderer, rendered) == ["<|im_end|>"]


@given(
    content=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<["), max_size=20),
    thinking=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<["), max_size=10),
)
def test_masking_any_thinking_leaves_the_answer(make_renderer, native, content, thinking):
    """Any text, white space and private-use characters included."""
    renderer = make_renderer("chatml")
    (rendered,) = renderer.train(
        Example(messages=(QUESTION, answered(content, thinking=thinking, train_thinking=False)))
    )
    assert trained_texts(native, renderer, rendered) == [f"{content.strip()}<|im_end|>"]
    assert rendered.anomalies == ()


@pytest.mark.parametrize(
    ("template", "opens"),
    [("chatml", False), ("qwen3", False), ("channels", False), ("mistral", False), ("r1", True), (OPENING, True)],
)
def test_a_prompt_that_ends_inside_the_thinking_is_known(make_renderer, template, opens):
    """Then what the model writes begins with its thinking, without the tag."""
    assert make_renderer(template).opens_thinking is opens


def test_a_system_message_about_the_tags_opens_nothing(make_renderer):
    """Only where the prompt ends with the tag."""
    template = "Think in <think> tags. " + make_renderer("gemma")._files.template
    assert make_renderer(template).opens_thinking is False
    assert make_renderer(None).opens_thinking is False
