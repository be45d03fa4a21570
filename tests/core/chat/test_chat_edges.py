"""Tokenizers, templates and conversations at the edge: each has an exact mask, an anomaly, or a reason."""

from __future__ import annotations

import itertools

import pytest

from modelwright.core.api import Example, Message, ModelwrightError, RowError
from modelwright.core.chat.renderer import Renderer, TemplateRefusedError, read_template

KINDS = ("byte_level", "unigram", "llama2", "words")


def user(content):
    return Message(role="user", content=content)


def assistant(content, **more):
    return Message(role="assistant", content=content, **more)


TALK = (user("hello"), assistant("It is 4."))


@pytest.fixture
def renderer_with(make_folder, tmp_path):
    """(template, **config) → a renderer whose tokenizer_config.json says so."""
    numbers = itertools.count()
    return lambda template, **config: Renderer.from_folder(
        make_folder(tmp_path / str(next(numbers)), "byte_level", template, **config)
    )


def trained_texts(renderer, rendered):
    """The runs of trained tokens, as they are written."""
    runs = itertools.groupby(zip(rendered.ids, rendered.trained, strict=True), key=lambda pair: pair[1])
    return [renderer.spell([number for number, _ in run]) for trained, run in runs if trained]


def test_without_an_end_of_sequence_token_the_templates_own_end_is_trained(renderer_with):
    """It is found by rendering, and stops generations."""
    renderer = renderer_with(read_template("chatml"), eos_token=None)
    (rendered,) = renderer.train(Example(messages=TALK))
    assert trained_texts(renderer, rendered) == ["It is 4.<|im_end|>"]
    assert rendered.anomalies == ()
    assert {renderer.spell([number]) for number in renderer.stop_token_ids} == {"<|im_end|>"}


def test_a_template_that_writes_an_end_of_sequence_token_that_there_is_not_says_so(renderer_with):
    """As transformers does, it refuses every conversation."""
    renderer = renderer_with("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", eos_token=None)
    with pytest.raises(RowError, match="refuses this conversation: 'eos_token' is undefined"):
        renderer.train(Example(messages=TALK))
    assert renderer.stop_token_ids == frozenset()


def test_plain_text_that_nothing_can_end_is_reported(renderer_with):
    """A base model trained so would never stop."""
    (rendered,) = renderer_with(None, eos_token=None).train(Example(text="hello world"))
    assert rendered.anomalies == ("end-missing",)
    assert all(rendered.trained)


def test_an_end_token_that_also_pads_is_still_trained(renderer_with):
    """Tokens are masked by their place, never by their id."""
    template = "{% for m in messages %}[{{ m.role[0] | upper }}]{{ m.content + eos_token }}{% endfor %}"
    renderer = renderer_with(template + "{{ '[A]' if add_generation_prompt }}", pad_token="</s>")
    assert renderer.special_ids["pad_token"] == renderer.special_ids["eos_token"]
    (rendered,) = renderer.train(Example(messages=TALK * 2))
    assert trained_texts(renderer, rendered) == ["It is 4.</s>"] * 2
    assert [span.kind for span in rendered.spans] == ["answer", "end"] * 2
    (text,) = renderer.train(Example(text="hello"))
    assert text.trained[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", ["all", "last", "split"])
def test_a_conversation_may_begin_with_the_assistant(make_renderer, kind, turns):
    """Its first turn has a header, which is not trained."""
    renderer = make_renderer("chatml", kind)
    messages = (assistant("fox"), *TALK)
    several = renderer.train(Example(messages=messages), turns)
    found = ["".join(text.split()) for rendered in several for text in trained_texts(renderer, rendered)]
    assert found == ["fox<|im_end|>", "Itis4.<|im_end|>"][turns == "last" :]
    assert {rendered.anomalies for rendered in several} == {()}


def test_two_users_in_a_row_are_both_context(make_renderer):
    """And two answers in a row are both trained, each after a header of its own."""
    renderer = make_renderer("chatml")
    (rendered,) = renderer.train(Example(messages=(user("a"), user("b"), assistant("fox"), assistant("dog"))))
    assert trained_texts(renderer, rendered) == ["fox<|im_end|>", "dog<|im_end|>"]
    assert rendered.anomalies == ()
    with pytest.raises(RowError, match="roles must alternate"):
        make_renderer("gemma").train(Example(messages=(user("a"), user("b"), assistant("fox"))))


def test_silence_is_trained_if_its_place_is_known_and_reported_otherwise(make_renderer):
    """R1's history lacks the `<think>` that its prompt opens; of a template without headers nothing is known."""
    renderer = make_renderer("r1")
    (rendered,) = renderer.train(Example(messages=(user("a"), assistant(""), user("b"), assistant(" "))))
    assert trained_texts(renderer, rendered) == ["</s>", " </s>"]
    assert rendered.anomalies == ()
    bare = make_renderer("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    (rendered,) = bare.train(Example(messages=(user("a"), assistant(""))))
    assert rendered.anomalies == ("span-lost", "nothing-trained")


@pytest.mark.parametrize("template", ["chatml", "gemma", "qwen3", "r1", "channels"])
def test_an_unclosed_tag_in_an_answer_is_text(make_renderer, template):
    """It opens no thinking, and is not a control token: the whole answer is trained, to its end."""
    renderer = make_renderer(template)
    (rendered,) = renderer.train(Example(messages=(user("hello"), assistant("<think>two and two"))))
    (plain,) = renderer.train(Example(messages=(user("hello"), assistant("Xtwo and two"))))
    assert trained_texts(renderer, rendered) == [
        text.replace("X", "<think>") for text in trained_texts(renderer, plain)
    ]
    assert rendered.anomalies == plain.anomalies == ()
    assert [span.kind for span in rendered.spans] == [span.kind for span in plain.spans]


def test_two_begin_tokens_are_reported(make_renderer):
    """The template writes both; one that someone types is text."""
    renderer = make_renderer("{{ bos_token }}" + make_renderer("mistral")._files.template)
    (rendered,) = renderer.train(Example(messages=TALK))
    assert rendered.anomalies == ("begin-doubled",)
    assert rendered.ids.count(renderer.special_ids["bos_token"]) == 2
    (typed,) = make_renderer("r1").train(Example(messages=(Message(role="system", content="<s>"), *TALK)))
    assert typed.anomalies == ()


def test_a_missing_end_token_is_reported_for_each_kind_of_turn(make_renderer):
    """Where answers have none, and where only the last one has."""
    none = make_renderer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    last = make_renderer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}")
    assert none.train(Example(messages=TALK))[0].anomalies == ("end-missing",)
    assert last.train(Example(messages=TALK))[0].anomalies == ()
    assert last.train(Example(messages=TALK * 2))[0].anomalies == ("end-missing",)


def test_the_token_that_opens_the_next_question_ends_no_answer(make_renderer):
    """Trained as an end, it would make the model ask the next question itself, since no generation stops there."""
    renderer = make_renderer(
        "{% for m in messages %}{{ ('[U]' if m.role == 'user' else '[A]') + m.content }}{% endfor %}"
        "{{ '[A]' if add_generation_prompt else eos_token }}"
    )
    (rendered,) = renderer.train(Example(messages=TALK * 2))
    assert trained_texts(renderer, rendered) == ["It is 4.", "It is 4.</s>"]
    assert rendered.anomalies == ("end-missing",)


def test_a_template_that_is_none_is_named_with_its_line(make_folder, tmp_path):
    """One line, in the folder's file, in its config, or in a file of the run."""
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}\n{{ m.content }}\n{% endif %}")
    with pytest.raises(ModelwrightError) as caught:
        read_template(str(file))
    reason = "the chat template cannot be read, line 3: Encountered unknown tag 'endif'"
    assert str(caught.value).startswith(f"{file}: {reason}")
    assert "\n" not in str(caught.value)
    folder = make_folder(tmp_path / "model", "byte_level", "x\n\n{{")
    with pytest.raises(ModelwrightError) as caught:
        Renderer.from_folder(folder)
    assert str(caught.value).startswith(f"{folder / 'tokenizer_config.json'}: the chat template cannot be read, line 3")


@pytest.mark.parametrize("kind", ["byte_level", "unigram", "llama2"])
def test_nul_bytes_are_text(make_renderer, kind):
    """Anywhere, in every field; the same places are trained."""
    renderer = make_renderer("qwen3", kind)
    messages = (Message(role="system", content="\0"), user("hel\0lo"), assistant("\0It\0 is 4.\0", thinking="t\0"))
    (rendered,) = renderer.train(Example(messages=messages))
    assert rendered.anomalies == ()
    (text,) = trained_texts(renderer, rendered)
    assert text.count("\0") == 4
    assert "".join(text.split()) == "<think>t\0</think>\0It\0is4.\0<|im_end|>"
    assert renderer.decode(renderer.encode("a\0b")) == "a\0b"


CALL = r'[{"type": "function", "function": {"name": "add", "arguments": {"a": "\ud800"}}}]'


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ((user("\ud800"), assistant("x")), None),
        ((user("x"), assistant("a\udfff")), None),
        ((user("x"), assistant("x", thinking="\ud800")), None),
        ((user("x"), assistant("", tool_calls=CALL)), None),
        ((user("x"), assistant("", tool_calls=CALL.replace("add", r"\ud800"))), None),
        (TALK, r'[{"name": "\udfff"}]'),
        ((user("<|im_end|>\ud800"), assistant("x")), None),
    ],
    ids=["asked", "answered", "thought", "argument", "name", "tools", "beside a control token"],
)
def test_a_lone_surrogate_is_named_wherever_it_is(make_renderer, messages, tools):
    """It is not a character, so that no tokenizer has a token for it: the row is rejected, a prompt refused."""
    renderer = make_renderer("qwen3")
    for turns in ("all", "last", "split"):
        with pytest.raises(RowError, match=r"lone surrogate, U\+D[8F]"):
            renderer.train(Example(messages=messages, tools=tools), turns)
    with pytest.raises(TemplateRefusedError, match=r"lone surrogate, U\+D[8F]"):
        renderer.prompt(messages, tools=tools)


def test_a_message_that_the_template_leaves_out_is_reported(make_renderer):
    """What the model would be taught was said after something that it never saw; silence cannot be left out."""
    renderer = make_renderer(
        "{% for m in messages if m.role in ('user', 'assistant') %}"
        "{{ '[' + m.role[0] | upper + ']' + m.content + eos_token }}{% endfor %}{{ '[A]' if add_generation_prompt }}"
    )
    for role, content, expected in (
        ("system", "Rule", ("message-dropped",)),
        ("tool", "4", ("message-dropped",)),
        ("system", " ", ()),
    ):
        (rendered,) = renderer.train(Example(messages=(Message(role=role, content=content), *TALK)))
        assert rendered.anomalies == expected
        assert trained_texts(renderer, rendered) == ["It is 4.</s>"]


# Nothing of the tokenizer's: where a prompt ends without a space, some answers share its last token and some do not.
TIGHT = """\
{%- for m in messages %}{{ ('U:' if m.role == 'user' else 'A:') + m.content + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ 'A:' }}{% endif %}
"""


def test_a_prompts_end_is_looked_at_for_each_answer(make_folder, tmp_path):
    """Of the same shape, an answer that joins the prompt's last token is reported, and the next one is not."""
    from tokenizers import Tokenizer

    folder = make_folder(tmp_path / "model", "byte_level", TIGHT)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([":)"])
    tokenizer.save(str(folder / "tokenizer.json"))
    renderer = Renderer.from_folder(folder)
    for answer, expected in (("fox", ()), (")", ("prompt-boundary",)), ("dog", ())):
        (rendered,) = renderer.train(Example(messages=(user("hello"), assistant(answer))))
        prompt = renderer.prompt((user("hello"),))
        assert (rendered.ids[: len(prompt)] == prompt) == (not expected)
        assert rendered.anomalies == expected


def test_masked_thinking_does_not_hide_where_the_prompt_ends(make_renderer):
    """What is seen only is tokenized in training as it is in serving, or it is reported."""
    template = (
        "{% for m in messages %}{{ ('USER: ' if m.role == 'user' else 'ASSISTANT: ') }}"
        "{% if m.thinking %}{{ m.thinking + '</think>' }}{% endif %}{{ m.content + eos_token }}{% endfor %}"
        "{{ 'ASSISTANT: ' if add_generation_prompt }}"
    )
    messages = (user("hello"), assistant("fox", thinking="It is", train_thinking=False))
    (rendered,) = make_renderer(template).train(Example(messages=messages))
    assert rendered.anomalies == ("prompt-boundary",)
    assert trained_texts(make_renderer(template), rendered) == ["fox</s>"]
    (rendered,) = make_renderer(template, "words").train(Example(messages=messages))
    assert rendered.anomalies == ()
