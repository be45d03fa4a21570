"""Training, evaluation and serving: after a prompt's tokens the model writes exactly what it was trained to write."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.core.api import Example, Message

# Where a prompt is not the beginning of the training example, by family and shape; None is any shape.
# Its text is another: R1's opens the thinking, which no history shows; gpt-oss shows the thinking before a call until
# the answer is there; Mistral shows the system message in the last message, if that is a user's.
OTHER_TEXT = {("r1", None), ("gptoss", "call_content"), ("gptoss", "call_thinking"), ("mistral", "system")}
# After a call R1 opens no thinking.
SAME_TEXT = {("r1", shape) for shape in ("call", "call_content", "call_thinking", "parallel")}
# It ends inside a token of the training example: this tokenizer has one for two newlines, and takes a newline before a
# letter apart.
INSIDE_TOKEN = {("llama3", None, "byte_level"), ("alpaca", "spaces", "byte_level"), ("zephyr", "spaces", "byte_level")}


@pytest.fixture
def served(family, kind, shown_shape, conversation, renderer_of, theirs):
    """The prompt's text and tokens for the last turn (as transformers makes them), and the turn's training example."""
    messages, tools = conversation(shown_shape)
    renderer = renderer_of(family.name, kind)
    text = theirs(family.name, kind, messages[:-1], tools, add_generation_prompt=True, tokenize=False)
    prompt = renderer.prompt(messages[:-1], tools=tools)
    assert list(prompt) == theirs(family.name, kind, messages[:-1], tools, add_generation_prompt=True)
    (rendered,) = renderer.train(Example(messages=messages, tools=tools), "last")
    return text, prompt, rendered


def test_a_prompt_is_the_beginning_of_the_training_example(family, kind, shown_shape, served):
    """Its tokens are the first of the training tokens, and the first that follows is the first that is trained."""
    text, prompt, rendered = served
    turn = family.transcript(shown_shape).turns[-1]
    before = rendered.text[: turn.trained[0][0]]
    case = (family.name, shown_shape)
    if {case, (family.name, None)} & OTHER_TEXT and case not in SAME_TEXT:
        assert not rendered.text.startswith(text)
        assert family.name != "r1" or text == before + "<think>\n"
        assert rendered.ids[: len(prompt)] != prompt
        return
    assert text == before
    if {(*case, kind), (family.name, None, kind)} & INSIDE_TOKEN:
        assert rendered.ids[: len(prompt)] != prompt
        assert "prompt-boundary" in rendered.anomalies
        return
    assert rendered.ids[: len(prompt)] == prompt
    assert "prompt-boundary" not in rendered.anomalies
    assert rendered.trained.index(True) == len(prompt)


# A generation prompt that ends with a space, which many tokenizers put at the beginning of the next word.
SPACED = """\
{%- for message in messages %}
    {{- 'USER: ' + message.content + ' ' if message.role == 'user' else 'ASSISTANT: ' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}
"""
TALK = (Message(role="user", content="What is 2 + 2?"), Message(role="assistant", content="It is 4."))


def test_an_answer_whose_first_token_begins_in_the_prompt_is_trained_from_that_token(make_renderer):
    """The model learns " It" after "ASSISTANT:", and is asked to go on after "ASSISTANT: "."""
    renderer = make_renderer(SPACED)
    (rendered,) = renderer.train(Example(messages=TALK))
    prompt = renderer.prompt(TALK[:1])
    assert rendered.ids[: len(prompt)] != prompt
    assert renderer.spell(prompt[-2:]) == ": "
    assert renderer.spell(rendered.ids[len(prompt) - 2 : len(prompt)]) == ": It"
    assert rendered.trained.index(True) == len(prompt) - 1


@pytest.mark.parametrize(("name", "kind"), [("llama3", "byte_level"), (None, "byte_level"), (None, "unigram")])
def test_a_prompt_that_ends_inside_a_token_is_an_anomaly(make_renderer, renderer_of, name, kind):
    """What is served is not what was trained: "prompt-boundary"."""
    renderer = make_renderer(SPACED, kind) if name is None else renderer_of(name, kind)
    for turns in ("all", "last", "split"):
        (rendered,) = renderer.train(Example(messages=TALK), turns)
        assert rendered.anomalies == ("prompt-boundary",)


def test_a_prompt_that_ends_with_a_token_has_no_anomaly(make_renderer):
    """The same template, with a tokenizer that has no token for a space and a letter together."""
    renderer = make_renderer(SPACED, "words")
    (rendered,) = renderer.train(Example(messages=TALK))
    prompt = renderer.prompt(TALK[:1])
    assert (rendered.ids[: len(prompt)], rendered.anomalies) == (prompt, ())


def test_a_call_ends_the_generation(renderer_of):
    """gpt-oss ends a call with <|call|>; a server that does not stop there lets the model answer itself."""
    renderer = renderer_of("gptoss", "byte_level")
    assert {renderer.spell([number]) for number in renderer.stop_token_ids} == {"<|return|>", "<|call|>"}


def test_a_system_message_that_only_the_prompt_shows_is_an_anomaly(conversation, renderer_of):
    """Mistral's shows it with the last message if that is a user's: it is served what it was never trained on."""
    messages, _ = conversation("system")
    renderer = renderer_of("mistral", "byte_level")
    (rendered,) = renderer.train(Example(messages=messages), "last")
    assert "Rule" not in rendered.text
    assert "Rule" in renderer.spell(renderer.prompt(messages[:-1]))
    assert rendered.anomalies == ("message-dropped",)


SAYINGS = st.lists(
    st.sampled_from(
        ["hello", "It is 4.", " ", "\n", "\n\n", ")", ":", "é", "日本", "a", "2", ".\n", "▁", "##", "\u00a0"]
    ),
    max_size=4,
).map("".join)


@settings(max_examples=40, deadline=None)
@given(question=SAYINGS, answer=SAYINGS, kind=st.sampled_from(["byte_level", "unigram", "llama2"]))
def test_a_prompts_end_is_reported_if_and_only_if_its_tokens_are_others(
    family_name, families, renderer_of, theirs, question, answer, kind
):
    """For any text: its tokens are the first ones, and the first that follows is the first trained."""
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    renderer = renderer_of(family_name, kind)
    (rendered,) = renderer.train(Example(messages=messages))
    prompt = renderer.prompt(messages[:1])
    text = theirs(family_name, kind, messages[:1], add_generation_prompt=True, tokenize=False)
    if families(family_name).opening:  # No history shows what this prompt opens.
        assert rendered.anomalies == ()
        return
    assert rendered.text.startswith(text)
    assert ("prompt-boundary" in rendered.anomalies) == (rendered.ids[: len(prompt)] != prompt)
    if not rendered.anomalies:
        assert rendered.trained.index(True) == len(prompt)
