"""Any conversation with any text in any family: what holds for all masks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.core.api import Example, Message, RowError

KINDS = ("byte_level", "unigram", "llama2")
# Signs that mark trained text and text that must not be trained; no template has them.
TRAINED, CONTEXT, THOUGHT, SEEN = "\u2603", "\u2602", "\u2601", "\u2600"


def texts(family):
    """Words, white space, letters of several bytes, and the family's control tokens whole and in part."""
    tokens = st.sampled_from([*family.control, *family.tags, "[INST]", "[/INST]", "<|user|>", "ASSISTANT:"])
    parts = st.tuples(tokens, st.integers(1, 12)).flatmap(
        lambda pair: st.sampled_from([pair[0], pair[0][: pair[1]], pair[0][pair[1] :]])
    )
    words = st.sampled_from(
        ["hello", " ", "\n", "  the", "user\n", "é", "日本", "\U000f0000", "\ue000", "\u00a0", "{{", "🦊"]
    )
    return st.lists(words | parts, max_size=4).map("".join)


@st.composite
def conversations(draw, family):
    """Some turns of any roles, more often in the usual order; each says a sign somewhere."""
    roles = draw(
        st.sampled_from([("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 2])
        | st.lists(st.sampled_from(["user", "assistant", "system", "tool"]), min_size=1, max_size=5)
    )
    messages = []
    for role in roles:
        before, after = draw(texts(family)), draw(texts(family))
        if role != "assistant":
            messages.append(Message(role=role, content=before + CONTEXT + after, name="add"))
            continue
        train, masked = draw(st.sampled_from([None, True, False])), draw(st.booleans())
        thinking = draw(st.none() | texts(family))
        sign = SEEN if masked or train is False else THOUGHT
        messages.append(
            Message(
                role=role,
                content=before + (CONTEXT if train is False else TRAINED) + after,
                thinking=None if thinking is None else thinking + sign,
                train=train,
                train_thinking=not masked,
            )
        )
    return tuple(messages)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_in_any_conversation_only_answers_are_trained_and_the_text_is_the_templates(
    families, family_name, renderer_of, theirs, data
):
    """The text and the refusals are transformers'; signs of others are not trained, and the answers' all are."""
    from jinja2.exceptions import TemplateError

    family, kind = families(family_name), data.draw(st.sampled_from(KINDS))
    messages, renderer = data.draw(conversations(family)), renderer_of(family_name, kind)
    try:
        expected = theirs(family_name, kind, messages, tokenize=False)
    except TemplateError:
        with pytest.raises(RowError, match="refuses this conversation"):
            renderer.train(Example(messages=messages))
        return
    (rendered,) = renderer.train(Example(messages=messages))
    assert rendered.text == expected or "template-reads-content" in rendered.anomalies
    assert len(rendered.ids) == len(rendered.trained)
    trained_text = renderer.spell(
        [number for number, trained in zip(rendered.ids, rendered.trained, strict=True) if trained]
    )
    assert CONTEXT not in trained_text
    assert SEEN not in trained_text
    answers = [message for message in messages if TRAINED in message.content]
    assert trained_text.count(TRAINED) == len(answers) or "span-lost" in rendered.anomalies
    thoughts = sum(THOUGHT in (message.thinking or "") for message in answers)
    assert trained_text.count(THOUGHT) == thoughts or {"span-lost", "thinking-dropped"} & set(rendered.anomalies)
    context = [message.role != "assistant" for message in messages if CONTEXT in message.content]
    if "message-dropped" in rendered.anomalies:
        assert rendered.text.count(CONTEXT) < len(context)
    else:
        assert rendered.text.count(CONTEXT) >= sum(context)
    assert all(left.end <= right.start for left, right in pairwise(rendered.spans))
    inside = {number for span in rendered.spans for number in range(span.start, span.end)}
    assert inside == {number for number, trained in enumerate(rendered.trained) if trained}
    assert {span.message for span in rendered.spans} <= {n for n, message in enumerate(messages) if message in answers}
    nothing = "nothing-trained" in rendered.anomalies
    assert nothing == (not any(rendered.trained))
