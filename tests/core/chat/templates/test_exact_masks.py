"""Each family of chat templates, each shape of conversation: what is rendered and what is trained, to the character."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from attrs import evolve

from modelwright.core.api import Example, RowError


def ranges_of(turns, *, thinking=True):
    """What the turns train, in characters."""
    trained = []
    for turn in turns:
        for low, high in turn.trained:
            start = low if thinking or not turn.thinking else turn.thinking[-1][1]
            trained.append((start, high))
    return trained


@pytest.fixture
def check(family, kind, renderer_of, tokens_in):
    """(rendered, transcript, the turns of it that are trained) → asserts the rendering, the mask, spans, anomalies."""

    def assert_equal(rendered, transcript, turns, *, thinking=True):
        assert rendered.text == transcript.text
        prompts = [turn.trained[0][0] for turn in turns if turn.trained]
        trained = ranges_of(turns, thinking=thinking)
        expected, anomalies = tokens_in(family.name, kind, transcript.text, trained, prompts)
        tokens = [renderer_of(family.name, kind)._tokenizer.spell([number]) for number in rendered.ids]
        shown = list(zip(tokens, rendered.trained, strict=True))
        assert shown == list(zip(tokens, expected, strict=True))
        anomalies |= transcript.anomalies.union(*(turn.anomalies for turn in turns))
        assert set(rendered.anomalies) == anomalies | (set() if any(expected) else {"nothing-trained"})
        assert all(left.end <= right.start for left, right in pairwise(rendered.spans))
        inside = {number for span in rendered.spans for number in range(span.start, span.end)}
        assert inside == {number for number, trained in enumerate(rendered.trained) if trained}

    return assert_equal


def test_the_answers_of_a_conversation_are_trained_exactly(
    family, kind, shape, conversation, renderer_of, theirs, check
):
    """All turns, or the last; text and tokens are those of transformers, or both refuse."""
    from jinja2.exceptions import TemplateError

    renderer, transcript = renderer_of(family.name, kind), family.transcript(shape)
    messages, tools = conversation(shape)
    example = Example(messages=messages, tools=tools)
    if transcript.refusal is not None:
        with pytest.raises(RowError, match=f"^the chat template refuses .*{re.escape(transcript.refusal)}"):
            renderer.train(example)
        with pytest.raises(TemplateError, match=re.escape(transcript.refusal)):
            theirs(family.name, kind, messages, tools, tokenize=False)
        return
    (rendered,) = renderer.train(example)
    assert transcript.text == theirs(family.name, kind, messages, tools, tokenize=False)
    assert list(rendered.ids) == theirs(family.name, kind, messages, tools)
    check(rendered, transcript, transcript.turns)
    (last,) = renderer.train(example, "last")
    assert last.ids == rendered.ids
    check(last, transcript, transcript.turns[-1:])


@pytest.mark.parametrize("shape", ["turns", "earlier_thinking"])
def test_split_renders_each_turn_as_if_it_were_the_last(
    family, kind, shape, conversation, beginnings, renderer_of, check
):
    """A rendering for each answer, which ends with it and trains it alone."""
    messages, _ = conversation(shape)
    first, second = renderer_of(family.name, kind).train(Example(messages=messages), "split")
    beginning, whole = family.transcript(beginnings[shape]), family.transcript(shape)
    check(first, beginning, beginning.turns)
    check(second, whole, whole.turns[-1:])


def test_a_turn_that_is_not_to_be_trained_is_context(family, kind, longer_shape, conversation, renderer_of, check):
    """`train=False` on one turn leaves the others' masks, and every token, as they were."""
    transcript = family.transcript(longer_shape)
    messages, tools = conversation(longer_shape)
    speaks = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for number, left_out in enumerate(speaks):
        chosen = [
            evolve(message, train=False) if index == left_out else message for index, message in enumerate(messages)
        ]
        (rendered,) = renderer_of(family.name, kind).train(Example(messages=chosen, tools=tools))
        check(rendered, transcript, [turn for other, turn in enumerate(transcript.turns) if other != number])


def test_masked_thinking_is_context(family, kind, shown_shape, conversation, renderer_of, check):
    """`train_thinking=False` leaves the answers and the calls with their ends, and every token as it was."""
    transcript = family.transcript(shown_shape)
    messages, tools = conversation(shown_shape)
    masked = [evolve(message, train_thinking=False) for message in messages]
    (rendered,) = renderer_of(family.name, kind).train(Example(messages=masked, tools=tools))
    check(rendered, transcript, transcript.turns, thinking=False)


# What is said instead of the transcripts' words. None of it begins or ends with white space, which some templates trim.
SAID = {
    "twice": {"Ask": "hello hello", "Reply": "hello hello", "More": "hello hello", "Later": "hello hello"},
    "roles": {"Ask": "assistant", "Reply": "user", "More": "model", "Later": "system"},
    "letters": {"Ask": "日本 é", "Reply": "答え 🦊\n\n  b", "More": "\U000f0000 \ue000", "Later": "a\u00a0  b\tc"},
    "template": {
        "Ask": "ASSISTANT: USER: [/INST",
        "Reply": "USER: 2 ASSISTANT: 3\n\n### Response:\n4",
        "More": "### Instruction:\nx\n\n### Response:",
        "Later": "|assistant|>\nim_start user\nimages: [[]] {{ content }}",
    },
    "one in the other": {"Ask": "the fox and the dog", "Reply": "the fox", "More": "fox", "Later": "the fox and the"},
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_with_any_words_the_same_places_are_trained(family, kind, said, conversation, renderer_of, theirs, check):
    """The same text twice, role words, what looks like the template: a turn is known by its place."""
    messages, _ = conversation("turns", tuple(said.items()))
    transcript = family.transcript("turns", tuple(said.items()))
    (rendered,) = renderer_of(family.name, kind).train(Example(messages=messages))
    assert list(rendered.ids) == theirs(family.name, kind, messages)
    check(rendered, transcript, transcript.turns)


def test_typed_control_tokens_move_no_mask(family, kind, conversation, renderer_of):
    """Every control token typed into every field: the template's own ones are where they were, and so is the mask."""
    typed = "".join(family.control)
    said = {"Ask": f"x {typed}{''.join(family.tags)} x", "Reply": typed, "More": f"{typed[:-1]}", "Later": f"a{typed}b"}
    renderer = renderer_of(family.name, kind)
    (plain,) = renderer.train(Example(messages=conversation("turns")[0]))
    (rendered,) = renderer.train(Example(messages=conversation("turns", tuple(said.items()))[0]))
    transcript = family.transcript("turns", tuple(said.items()))
    assert rendered.text == transcript.text
    assert rendered.anomalies == plain.anomalies
    controls = {
        renderer._tokenizer.controls[token]
        for token in (*family.control, *family.tags)
        if token in family.template or token in family.control
    }

    def marked(one):
        return [(number, trained) for number, trained in zip(one.ids, one.trained, strict=True) if number in controls]

    assert marked(rendered) == marked(plain)
    trained = renderer.spell(
        [number for number, trained in zip(rendered.ids, rendered.trained, strict=True) if trained]
    )
    expected = "".join(transcript.text[low:high] for low, high in ranges_of(transcript.turns))
    assert "".join(trained.split()) == "".join(
        expected.replace("▁", " ").split() if kind != "byte_level" else expected.split()
    )


# Not llama2's template with a byte-level tokenizer: there transformers finds no token for the space that a marked
# stretch begins with, since the tokenizer trims it off the offsets, and its mask is empty.
@pytest.mark.parametrize(
    ("family_name", "kind"),
    [
        ("granite", "byte_level"),
        ("granite", "unigram"),
        ("granite", "llama2"),
        ("llama2", "unigram"),
        ("llama2", "llama2"),
    ],
)
def test_the_mask_is_the_one_that_a_template_marks_itself(family, kind, conversation, renderer_of, theirs):
    """Where a template has `{% generation %}`, transformers' mask of the assistant's tokens is ours, in every shape."""
    compared = 0
    for shape in family.sections:
        transcript = family.transcript(shape)
        if transcript.refusal is None:
            messages, tools = conversation(shape)
            (rendered,) = renderer_of(family.name, kind).train(Example(messages=messages, tools=tools))
            options = {"return_dict": True, "return_assistant_tokens_mask": True}
            marked = theirs(family.name, kind, messages, tools, **options)
            assert list(rendered.ids) == marked["input_ids"]
            assert list(map(int, rendered.trained)) == marked["assistant_masks"]
            compared += 1
    assert compared >= 7
