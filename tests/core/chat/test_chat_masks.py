"""Label masks: which tokens of a conversation are trained, under templates of every shape."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import Example, Message, RowError, UsageError
from modelwright.core.chat.renderer import Span

KINDS = ("byte_level", "unigram", "llama2", "words")


def system(content):
    return Message(role="system", content=content)


def user(content, **more):
    return Message(role="user", content=content, **more)


def assistant(content, **more):
    return Message(role="assistant", content=content, **more)


TWO_TURNS = (user("What is 2 + 2?"), assistant("It is 4."), user("hello"), assistant("hello world"))


def trained_texts(native, renderer, rendered):
    """The runs of trained tokens, decoded with control tokens shown."""
    tokenizer = native(renderer)
    runs = itertools.groupby(zip(rendered.ids, rendered.trained, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([n for n, _ in run], skip_special_tokens=False) for trained, run in runs if trained]


def only(rendered):
    (one,) = rendered
    return one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("template", "end", "last_end"),
    [
        ("chatml", "<|im_end|>", "<|im_end|>"),
        ("llama3", "<|eot_id|>", "<|eot_id|>"),
        ("gemma", "<end_of_turn>", "<end_of_turn>"),
        ("mistral", "</s>", "</s>"),
        ("r1", "</s>", "</s>"),
    ],
)
def test_answers_and_their_end_tokens_are_trained_and_nothing_else(
    make_renderer, native, template, end, last_end, kind
):
    """Every template and tokenizer: the trained tokens say the answers, each with its end-of-turn token."""
    renderer = make_renderer(template, kind)
    rendered = only(renderer.train(Example(messages=TWO_TURNS)))
    # This tokenizer makes one token of the two newlines that Llama's prompt ends with, and two before a letter.
    boundary = (template, kind) == ("llama3", "byte_level")
    assert rendered.anomalies == (("prompt-boundary",) if boundary else ())
    texts = [text.strip() for text in trained_texts(native, renderer, rendered)]
    assert texts == [f"It is 4.{end}", f"hello world{last_end}"]
    assert [span.kind for span in rendered.spans] == ["answer", "end", "answer", "end"]
    assert [span.message for span in rendered.spans] == [1, 1, 3, 3]


def test_the_space_that_a_template_writes_before_the_answer_is_trained(make_renderer, native):
    """Mistral's prompt ends at [/INST], so the model must write the space itself."""
    renderer = make_renderer("mistral")
    rendered = only(renderer.train(Example(messages=TWO_TURNS[:2])))
    assert trained_texts(native, renderer, rendered) == [" It is 4.</s>"]


def test_white_space_inside_an_answer_is_trained(make_renderer, native):
    """Tokens of white space alone belong to the answer, although byte-level tokenizers report them as empty."""
    renderer = make_renderer("chatml")
    rendered = only(renderer.train(Example(messages=(user("hello"), assistant("a    b\n\n\n  c")))))
    assert trained_texts(native, renderer, rendered) == ["a    b\n\n\n  c<|im_end|>"]


def test_characters_of_several_tokens_are_trained_whole(make_renderer, native):
    """A character whose bytes are several tokens is trained with all of them."""
    renderer = make_renderer("chatml")
    rendered = only(renderer.train(Example(messages=(user("日本"), assistant("答え 🦊")))))
    assert trained_texts(native, renderer, rendered) == ["答え 🦊<|im_end|>"]


@pytest.mark.parametrize("template", ["chatml", "qwen3"])
def test_thinking_is_trained_with_the_tags_that_the_model_must_write(make_renderer, native, template):
    """The generation prompt ends before <think>, so the tags and the blank line are trained as part of the thinking."""
    renderer = make_renderer(template)
    example = Example(messages=(user("What is 2 + 2?"), assistant("It is 4.", thinking="two and two")))
    rendered = only(renderer.train(example))
    assert trained_texts(native, renderer, rendered) == ["<think>\ntwo and two\n</think>\n\nIt is 4.<|im_end|>"]
    tokenizer = native(renderer)
    parts = {s.kind: tokenizer.decode(rendered.ids[s.start : s.end], skip_special_tokens=False) for s in rendered.spans}
    assert parts == {"thinking": "<think>\ntwo and two\n</think>\n\n", "answer": "It is 4.", "end": "<|im_end|>"}
    assert rendered.anomalies == ()


def test_an_empty_thinking_block_that_the_template_writes_is_trained(make_renderer, native):
    """Qwen3 writes an empty block before a last answer without thinking; a model served so must write it too."""
    renderer = make_renderer("qwen3")
    rendered = only(renderer.train(Example(messages=TWO_TURNS)))
    assert trained_texts(native, renderer, rendered) == [
        "It is 4.<|im_end|>",
        "<think>\n\n</think>\n\nhello world<|im_end|>",
    ]


def test_thinking_in_a_channel_of_its_own_is_trained_with_its_scaffold(make_renderer, native):
    """What lies between thinking and answer is the model's to write; the last answer has an end token of its own."""
    renderer = make_renderer("channels")
    example = Example(messages=(user("hello"), assistant("world", thinking="two"), user("again"), assistant("dog")))
    rendered = only(renderer.train(example))
    assert trained_texts(native, renderer, rendered) == [
        "<|channel|>analysis<|message|>two<|end|><|start|>assistant<|channel|>final<|message|>world<|end|>",
        "<|channel|>final<|message|>dog<|return|>",
    ]


def test_only_the_last_answers_end_token_stops_a_generation(make_renderer, native):
    """The token that ends earlier turns can also follow thinking, so it stops nothing."""
    renderer = make_renderer("channels")
    stops = {native(renderer).id_to_token(number) for number in renderer.stop_token_ids}
    assert stops == {"</s>", "<|return|>"}


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        ("chatml", {"</s>", "<|im_end|>"}),
        ("llama3", {"</s>", "<|eot_id|>"}),
        ("gemma", {"</s>", "<end_of_turn>"}),
        ("mistral", {"</s>"}),
    ],
)
def test_stop_tokens_are_the_end_of_sequence_and_what_follows_an_answer(make_renderer, native, template, stops):
    """They are found by rendering, under any name that the template gives them."""
    renderer = make_renderer(template)
    assert {native(renderer).id_to_token(number) for number in renderer.stop_token_ids} == stops


def test_thinking_that_the_template_drops_is_an_anomaly(make_renderer):
    """Qwen3 hides the thinking of earlier turns, Llama 3 hides all: what is left is not what the data says."""
    turns = (user("hello"), assistant("a", thinking="two"), user("again"), assistant("b", thinking="three"))
    assert only(make_renderer("qwen3").train(Example(messages=turns))).anomalies == ("thinking-dropped",)
    assert only(make_renderer("llama3", "words").train(Example(messages=turns))).anomalies == ("thinking-dropped",)
    assert only(make_renderer("qwen3").train(Example(messages=turns), "last")).anomalies == ()


def test_split_trains_each_turn_as_the_model_meets_it(make_renderer, native):
    """One rendering for each answer, ending there: its thinking is shown and trained, that of earlier turns is not."""
    renderer = make_renderer("qwen3")
    turns = (user("hello"), assistant("a", thinking="two"), user("again"), assistant("b", thinking="three"))
    first, second = renderer.train(Example(messages=turns), "split")
    assert trained_texts(native, renderer, first) == ["<think>\ntwo\n</think>\n\na<|im_end|>"]
    assert trained_texts(native, renderer, second) == ["<think>\nthree\n</think>\n\nb<|im_end|>"]
    assert "two" not in second.text
    assert first.anomalies == second.anomalies == ()
    for rendered, length in ((first, 1), (second, 3)):
        prompt = renderer.prompt(turns[:length])
        assert rendered.ids[: len(prompt)] == prompt


def test_a_prompt_that_is_not_a_prefix_leaves_the_answer_trained(make_renderer, native):
    """R1 opens the thinking in its generation prompt and never shows it again: the answer's own place counts."""
    renderer = make_renderer("r1")
    rendered = only(renderer.train(Example(messages=TWO_TURNS), "last"))
    assert trained_texts(native, renderer, rendered) == ["hello world</s>"]


def test_the_generation_prompt_is_found_where_history_differs(make_renderer, native):
    """A template that counts its messages has no prompt that is a prefix; the answer's header is found instead."""
    renderer = make_renderer("{{ messages | length }} messages\n" + read_chatml(make_renderer))
    example = Example(messages=(user("hello"), assistant("world", thinking="two")))
    rendered = only(renderer.train(example))
    assert trained_texts(native, renderer, rendered) == ["<think>\ntwo\n</think>\n\nworld<|im_end|>"]


def read_chatml(make_renderer):
    return make_renderer("chatml")._files.template


def test_a_message_decides_for_itself_whether_it_is_trained(make_renderer, native):
    """`train` on a message goes before the run's `turns`, both ways and for any role."""
    renderer = make_renderer("chatml")
    first, second, third, fourth = TWO_TURNS
    chosen = (first, assistant(second.content, train=False), user(third.content, train=True), fourth)
    rendered = only(renderer.train(Example(messages=chosen)))
    assert trained_texts(native, renderer, rendered) == ["hello<|im_end|>", "hello world<|im_end|>"]
    kept = (first, assistant(second.content, train=True), third, assistant(fourth.content, train=False))
    assert trained_texts(native, renderer, only(renderer.train(Example(messages=kept), "last"))) == [
        "It is 4.<|im_end|>"
    ]


def test_last_trains_the_last_answer_only(make_renderer, native):
    """Turns before it are context."""
    renderer = make_renderer("chatml")
    rendered = only(renderer.train(Example(messages=TWO_TURNS), "last"))
    assert trained_texts(native, renderer, rendered) == ["hello world<|im_end|>"]


def test_an_answer_that_the_template_shows_twice_is_masked_and_reported(make_renderer):
    """Two places for one answer: neither is trained."""
    renderer = make_renderer("{% for m in messages %}[U]{{ m.content }}[A]{{ m.content }}</s>{% endfor %}")
    rendered = only(renderer.train(Example(messages=(user("hello"), assistant("world")))))
    assert rendered.anomalies == ("span-lost", "nothing-trained")
    assert not any(rendered.trained)


def test_one_lost_answer_does_not_take_the_others_with_it(make_renderer, native):
    """A template that reads one answer's beginning hides that one only."""
    renderer = make_renderer(
        "{% for m in messages %}[{{ 'U' if m.role == 'user' else 'A' }}]"
        "{{ m.content if not m.content.startswith('It') else m.content | upper }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[A]{% endif %}"
    )
    rendered = only(renderer.train(Example(messages=TWO_TURNS)))
    assert rendered.anomalies == ("span-lost",)
    assert trained_texts(native, renderer, rendered) == ["hello world</s>"]


def test_thinking_typed_into_content_that_the_template_cuts_is_reported(make_renderer):
    """R1 keeps only what follows </think>: half the answer has no place."""
    rendered = only(make_renderer("r1").train(Example(messages=(user("hello"), assistant("two</think>four")))))
    assert "span-lost" in rendered.anomalies
    assert not any(rendered.trained)


def test_an_answer_without_an_end_token_is_reported(make_renderer, native):
    """A model trained so would not learn to stop."""
    renderer = make_renderer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    rendered = only(renderer.train(Example(messages=TWO_TURNS[:2])))
    assert rendered.anomalies == ("end-missing",)
    assert "It is 4." in "".join(trained_texts(native, renderer, rendered))


def test_a_conversation_without_an_answer_trains_nothing(make_renderer):
    """It is rendered once, with any value of `turns`, so that it is counted."""
    for turns in ("all", "last", "split"):
        assert only(make_renderer("chatml").train(Example(messages=[user("hello")]), turns)).anomalies == (
            "nothing-trained",
        )


def test_an_empty_answer_trains_its_end_token(make_renderer, native):
    """Silence is an answer."""
    renderer = make_renderer("chatml")
    rendered = only(renderer.train(Example(messages=(user("hello"), assistant("  ")))))
    assert trained_texts(native, renderer, rendered) == ["<|im_end|>"]


def test_tool_calls_are_trained_to_the_end_of_the_turn(make_renderer, native):
    """The whole call, closing brackets and tags included, is the model's to write."""
    renderer = make_renderer("qwen3")
    calls = '[{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": [2]}"}}]'
    turns = (user("hello"), assistant("", tool_calls=calls), Message(role="tool", content="4"), assistant("four"))
    rendered = only(renderer.train(Example(messages=turns, tools='[{"name": "add"}]')))
    texts = trained_texts(native, renderer, rendered)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": [2]}}\n</tool_call><|im_end|>'
    assert texts[0] == call
    assert texts[1].endswith("four<|im_end|>")
    assert rendered.anomalies == ()


def test_a_call_that_nothing_ends_does_not_reach_into_the_next_turn(make_renderer, native):
    """Where only the conversation has an end token, an earlier call's brackets stay untrained, and so do the users."""
    renderer = make_renderer(
        "{% for m in messages %}{% if m.role == 'user' %}<User>{{ m.content }}{% else %}"
        "<Bot>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endif %}{% endfor %}"
        "{{ '<Bot>' if add_generation_prompt else eos_token }}"
    )
    call = assistant("", tool_calls='[{"name": "add", "arguments": {}}]')
    rendered = only(renderer.train(Example(messages=(user("hello"), call, user("again"), assistant("four")))))
    assert trained_texts(native, renderer, rendered) == ['{"name": "add', "four</s>"]
    assert rendered.anomalies == ("end-missing",)


def test_plain_text_is_trained_whole_and_ended(make_renderer, native):
    """An example without turns is its text and the end of sequence, with no template."""
    renderer = make_renderer(None)
    rendered = only(renderer.train(Example(text="the quick </s> fox")))
    tokenizer = native(renderer)
    assert tokenizer.decode(list(rendered.ids), skip_special_tokens=False) == "the quick </s> fox</s>"
    assert rendered.ids.count(tokenizer.token_to_id("</s>")) == 1
    assert all(rendered.trained)
    count = len(rendered.ids)
    assert rendered.spans == (Span("text", -1, 0, count - 1), Span("end", -1, count - 1, count))


def test_plain_text_begins_as_the_tokenizers_own_encoding_does(make_renderer, tmp_path):
    """The beginning-of-sequence token is there if the tokenizer itself puts it there; it is not trained."""
    from tokenizers import Tokenizer, processors

    from modelwright.core.chat.renderer import Renderer

    make_renderer(None).save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rendered = only(Renderer.from_folder(tmp_path).train(Example(text="hello world")))
    assert rendered.ids[:-1] == tuple(tokenizer.encode("hello world").ids)
    assert rendered.trained[:2] == (False, True)


def test_what_cannot_be_rendered_is_a_row_error_with_the_reason(make_renderer):
    """The row is rejected with what the template said, broken JSON or a lone surrogate named."""
    cases = [
        ("gemma", (system("rule"), user("hello"), assistant("world")), "System role not supported"),
        ("qwen3", (user("hello"), assistant("", tool_calls="[{")), "tool_calls is not JSON"),
        ("qwen3", (user("hello"), assistant("", tool_calls="{}")), "must be a JSON array"),
        ("chatml", (user("a\ud800"), assistant("world")), "lone surrogate, U\\+D800"),
        ("chatml", (), "at least one message"),
        ("chatml", (user("hello"), assistant("", tool_calls="[{}]")), "chatml shows no tool calls"),
    ]
    for template, messages, reason in cases:
        with pytest.raises(RowError, match=reason):
            make_renderer(template).train(Example(messages=messages))
    with pytest.raises(RowError, match="lone surrogate"):
        make_renderer(None).train(Example(text="\udfff"))


def test_a_conversation_without_a_template_says_what_to_configure(make_renderer):
    """A base model's tokenizer often has none."""
    with pytest.raises(UsageError, match=r"\[model\] chat_template"):
        make_renderer(None).train(Example(messages=TWO_TURNS))


# Every character but lone surrogates, and those that control tokens begin with.
characters = st.characters(exclude_categories=("Cs",), exclude_characters="<[")


@given(
    contents=st.lists(st.text(characters, max_size=20), min_size=2, max_size=6),
    thinking=st.none() | st.text(characters, max_size=10),
)
@pytest.mark.parametrize("kind", ["byte_level", "words"])
def test_the_mask_is_the_answers_of_any_conversation(make_renderer, native, kind, contents, thinking):
    """Any text, private-use characters and white space included: the mask decodes to the turns."""
    renderer = make_renderer("chatml", kind)
    turns = [
        assistant(content, thinking=thinking) if number % 2 else user(content)
        for number, content in enumerate(contents)
    ]
    rendered = only(renderer.train(Example(messages=turns)))
    answers = [turn for turn in turns if turn.role == "assistant"]
    think = f"<think>\n{thinking.strip()}\n</think>\n\n" if thinking and thinking.strip() else ""
    expected = [f"{think}{turn.content.strip()}<|im_end|>" for turn in answers]
    if kind == "byte_level":
        assert trained_texts(native, renderer, rendered) == expected
    assert list(rendered.ids) == native(renderer).encode(rendered.text, add_special_tokens=False).ids
    assert len([span for span in rendered.spans if span.kind == "end"]) == len(answers)
    assert rendered.anomalies == ()
