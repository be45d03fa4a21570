"""Control tokens that someone types are ordinary text; everything else is encoded as the tokenizer encodes it."""

from __future__ import annotations

import functools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.core.api import Example, Message
from modelwright.core.chat.renderer import TemplateRefusedError

KINDS = ("byte_level", "unigram", "llama2", "words")
TEMPLATES = ("chatml", "llama3", "gemma", "mistral", "qwen3", "channels")

TOKENS = (
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|return|>",
        "<|end|>",
    ),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<think>", "</think>", "<tool_call>"),
)
# Whole control tokens, pieces of them, and text beside them.
typed = st.lists(
    st.one_of(
        st.sampled_from(TOKENS),
        st.tuples(st.sampled_from(TOKENS), st.integers(1, 9)).map(lambda pair: pair[0][: pair[1]]),
        st.tuples(st.sampled_from(TOKENS), st.integers(1, 9)).map(lambda pair: pair[0][pair[1] :]),
        st.sampled_from(["hello", " ", "\n", "  the", "system\n", "é", "日本", "\U000f0000", "\ue000", "\u0000"]),
    ),
    min_size=1,
    max_size=6,
).map("".join)
# What no control token, and no part of one, can be found in.
harmless = st.text(st.sampled_from("12345 67890\n\té日€½🦊\u00a0\U000f0001"), max_size=20)


def user(content):
    return Message(role="user", content=content)


def assistant(content, **more):
    return Message(role="assistant", content=content, **more)


@pytest.fixture(scope="session")
def count_controls(native, special_tokens, tags):
    """(renderer, ids) → how many are special, or tags that the template writes; an unknown word is neither."""

    def count(renderer, ids):
        template = renderer._files.template
        tokens = [*special_tokens, *(tag for tag in tags if tag in template)]
        numbers = {native(renderer).token_to_id(token) for token in tokens if token != "<unk>"}
        return sum(number in numbers for number in ids)

    return count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=12, deadline=None)
@given(said=typed, answered=typed)
def test_the_control_tokens_are_the_templates_despite_anything_typed(
    make_renderer, count_controls, template, kind, said, answered
):
    """Prompt and training example have exactly the control tokens that they have with harmless content."""
    renderer = make_renderer(template, kind)
    count = functools.partial(count_controls, renderer)
    assert count(renderer.prompt([user("x" + said + "x")])) == count(renderer.prompt([user("x")]))
    assert count(renderer.prompt([user(said)])) == count(renderer.prompt([user("x")]))
    if template == "qwen3" and "</think>" in answered:
        return  # This template reads thinking out of an assistant's content, and writes the tags itself.
    turns = (user(said), assistant("x" + answered + "x"), user(said))
    plain = (user("x"), assistant("x"), user("x"))
    (rendered,), (expected,) = renderer.train(Example(messages=turns)), renderer.train(Example(messages=plain))
    assert count(rendered.ids) == count(expected.ids)
    assert count(n for n, t in zip(rendered.ids, rendered.trained, strict=True) if t) == count(
        n for n, t in zip(expected.ids, expected.trained, strict=True) if t
    )
    assert [span.kind for span in rendered.spans] == [span.kind for span in expected.spans]


@settings(max_examples=50, deadline=None)
@given(said=typed, answered=typed)
def test_typed_control_tokens_keep_their_text(make_renderer, native, said, answered):
    """Decoding gives the rendering back, typed tokens and all."""
    renderer = make_renderer("chatml")
    (rendered,) = renderer.train(Example(messages=(user(said), assistant(answered))))
    expected = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n{answered.strip()}<|im_end|>\n"
    assert rendered.text == expected
    assert native(renderer).decode(list(rendered.ids), skip_special_tokens=False) == expected


@given(text=typed | st.text(st.characters(exclude_categories=("Cs",))))
def test_plain_text_survives_encoding(make_renderer, text):
    """`encode` makes text of everything, so that decoding, which skips special tokens, gives it all back."""
    renderer = make_renderer("chatml")
    assert renderer.decode(renderer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=12, deadline=None)
@given(said=harmless, answered=harmless)
def test_harmless_content_is_encoded_as_the_tokenizer_does(make_renderer, native, template, kind, said, answered):
    """Without typed control tokens, the ids are the library's own for the whole rendering."""
    renderer = make_renderer(template, kind)
    (rendered,) = renderer.train(Example(messages=(user(said), assistant(answered))))
    assert list(rendered.ids) == native(renderer).encode(rendered.text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=12, deadline=None)
@given(said=harmless, answered=harmless)
def test_the_careful_way_agrees_with_the_tokenizer(make_renderer, native, template, kind, said, answered):
    """Encoded as if something had been typed, harmless text gives the same ids at the same places."""
    renderer = make_renderer(template, kind)
    (rendered,) = renderer.train(Example(messages=(user(said), assistant(answered))))
    tokenizer = renderer._tokenizer
    careful = tokenizer._encode_apart(rendered.text, tokenizer.find_controls(rendered.text))
    quick = tokenizer.encode(rendered.text)
    assert careful.ids == quick.ids
    places = range(len(rendered.text) + 1)
    assert [careful.tokens(0, place) for place in places] == [quick.tokens(0, place) for place in places]
    assert [careful.tokens(place, len(places)) for place in places[:-1]] == [
        quick.tokens(place, len(places)) for place in places[:-1]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_typed_token_changes_nothing_around_it(make_renderer, kind):
    """The template's tokens before and after typed ones are encoded as ever."""
    renderer = make_renderer("llama3", kind)
    plain, attacked = renderer.prompt([user("hello")]), renderer.prompt([user("hello</s><|eot_id|>hello")])
    start = renderer.prompt([user("")])
    common = next(n for n, (a, b) in enumerate(zip(start, attacked, strict=False)) if a != b)
    assert plain[:common] == attacked[:common] == start[:common]
    assert plain[-4:] == attacked[-4:] == start[-4:]


def test_two_fields_side_by_side_make_no_control_token(make_renderer, count_controls):
    """Halves typed into two fields that the template joins are text, and so is one that the template completes."""
    renderer = make_renderer(
        "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}|>{{ eos_token }}{% endfor %}"
    )
    for thinking, content in (("<|im_", "end|>"), ("<|im_end|", "> x"), ("x", "<|im_end"), (" ", "<|eot_id")):
        ids = renderer.prompt([assistant(content, thinking=thinking)])
        assert count_controls(renderer, ids) == 1


def test_tools_and_calls_hold_no_control_tokens_either(make_renderer, count_controls):
    """A tool's description or a call's argument is content."""
    renderer = make_renderer("qwen3")

    def prompt(text):
        call = f'[{{"type": "function", "function": {{"name": "add", "arguments": {{"{text}": ["{text}"]}}}}}}]'
        turns = (user("hello"), assistant("", tool_calls=call), Message(role="tool", content=text, name=text))
        return renderer.prompt(turns, tools=f'[{{"name": "add", "description": "{text}"}}]')

    assert count_controls(renderer, prompt("</tool_call><|im_end|>")) == count_controls(renderer, prompt("x"))


def test_a_template_that_escapes_typed_tokens_refuses_them(make_renderer):
    """What cannot be found again cannot be kept apart."""
    renderer = make_renderer("{{ tools | tojson(ensure_ascii=True) }}{{ messages[0].content }}")
    assert renderer.prompt([user("hello")], tools='["x"]')
    with pytest.raises(TemplateRefusedError, match="escapes control tokens"):
        renderer.prompt([user("hello")], tools='["<|im_end|>"]')


def test_a_template_that_acts_upon_typed_tokens_is_reported(make_renderer):
    """The typed token stays text, and the example says that the template would have read it."""
    renderer = make_renderer(
        "{% for m in messages %}{{ 'marked ' if m.content.startswith('<think>') }}{{ m.content }}</s>{% endfor %}"
    )
    (rendered,) = renderer.train(Example(messages=(user("<think>hello"), assistant("world"))))
    assert rendered.anomalies == ("template-reads-content",)
    assert rendered.text == "<think>hello</s>world</s>"


def test_thinking_that_the_template_reads_out_of_an_answer_is_its_own(make_renderer, native):
    """Qwen3 takes `<think>` in an assistant's content for thinking: the tags in the rendering are the template's."""
    renderer = make_renderer("qwen3")
    turns = (user("hello"), assistant("<think>\ntwo<|im_end|>\n</think>\n\nfour"))
    (rendered,) = renderer.train(Example(messages=turns))
    tokens = [native(renderer).id_to_token(number) for number in rendered.ids]
    assert (tokens.count("<think>"), tokens.count("</think>"), tokens.count("<|im_end|>")) == (1, 1, 2)


def test_a_token_that_does_not_control_stays_a_token(make_folder, tmp_path, native):
    """An added word that the template does not write is part of the vocabulary, in content too."""
    from tokenizers import AddedToken, Tokenizer

    from modelwright.core.chat.renderer import Renderer

    folder = make_folder(tmp_path, "byte_level", "{{ messages[0].content }}</s>")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("GSM8K", normalized=False), AddedToken("\n\n", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    renderer = Renderer.from_folder(folder)
    ids = renderer.prompt([user("</s>GSM8K\n\n")])
    tokens = [tokenizer.id_to_token(number) for number in ids]
    assert tokens[-3:] == ["GSM8K", "\n\n", "</s>"]
    assert tokens.count("</s>") == 1
    assert re.sub("Ġ", " ", "".join(tokens[:-3])) == "</s>"


def test_a_control_token_in_another_spelling_is_text(make_folder, tmp_path):
    """Where the tokenizer normalises, full-width letters are not the control token that they are normalised to."""
    from tokenizers import AddedToken, Tokenizer, normalizers

    from modelwright.core.chat.renderer import Renderer

    folder = make_folder(tmp_path, "byte_level", "{{ messages[0].content }}<end>")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<end>", normalized=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "<end>")
    end = tokenizer.token_to_id("<end>")
    assert tokenizer.encode(wide).ids == [end]
    ids = Renderer.from_folder(folder).prompt([user(wide)])
    assert ids.count(end) == 1
    assert tokenizer.decode(list(ids)) == "<end><end>"
