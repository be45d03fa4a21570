"""Tokenizers that are built from the training data."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.core.api import Example, Message, UsageError
from modelwright.core.chat.renderer import Renderer, read_template
from modelwright.core.stages.prepare.tokenizers import build_tokenizer, scratch_renderer

CONTROLS = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
TEXTS = ["Tom has 12 apples, and Ann has 7.", "How many apples? 12 + 7 = 19.\nSo: 19 apples!", "apples apples apples"]
EXAMPLES = [
    Example(
        messages=(
            Message(role="user", content=text),
            Message(role="assistant", content="19", thinking="12 + 7 = 19" if number else None),
        )
    )
    for number, text in enumerate(TEXTS)
]


def tokens(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).tokens


def test_words_keep_the_space_before_them_and_digits_stand_alone():
    """So decoding is concatenation, and numbers are written digit by digit."""
    tokenizer = build_tokenizer("words", TEXTS, 100, CONTROLS)
    assert tokens(tokenizer, "Tom has 12 apples, and 7.") == [
        *("Tom", " has", " ", "1", "2", " apples", ",", " and", " ", "7", "."),
    ]


def test_bpe_digits_stand_alone():
    """However often a number occurs."""
    tokenizer = build_tokenizer("bpe", ["12 12 12 12 12 12"] * 50, 400, CONTROLS)
    assert tokens(tokenizer, "12 + 12") == ["1", "2", "Ġ", "+", "Ġ", "1", "2"]


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(st.sampled_from(["Tom", " has", " ", "1", "2", " apples", ",", "\n", "?", " =", ":"]), max_size=12)
)
def test_what_is_in_the_vocabulary_round_trips_in_words(words):
    """Any text of known words decodes to itself."""
    tokenizer = build_tokenizer("words", TEXTS, 100, CONTROLS)
    text = "".join(words)
    unknown = tokenizer.token_to_id("<|unk|>")
    ids = tokenizer.encode(text).ids
    if unknown not in ids:
        assert tokenizer.decode(ids) == text


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_everything_round_trips_in_bpe(text):
    """Byte-level encoding knows every text."""
    tokenizer = build_tokenizer("bpe", TEXTS, 300, [])
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_most_frequent_words_are_kept():
    """The vocabulary never exceeds its size, and ties go by the text."""
    tokenizer = build_tokenizer("words", ["b a c a b a z y x"], 4 + len(CONTROLS), CONTROLS)
    assert tokenizer.get_vocab_size() == 4 + len(CONTROLS)
    assert {" a", " b"} < set(tokenizer.get_vocab())
    kept = set(tokenizer.get_vocab()) - set(CONTROLS) - {"<|unk|>", " a", " b"}
    assert kept == {" c"}


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_the_same_data_gives_the_same_tokenizer(kind):
    """Twice, and whether texts come as a list or one at a time."""
    texts = [f"{word} {number}" for number in range(200) for word in ("ab", "ba", "abc", "cab", "bca")]
    first = build_tokenizer(kind, texts, 320, CONTROLS).to_str()
    assert first == build_tokenizer(kind, iter(texts), 320, CONTROLS).to_str()


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_control_tokens_are_whole_and_thinking_stays_in_the_text(kind):
    """Tags survive decoding; the ends of turns do not; none of their letters are trained as words."""
    tokenizer = build_tokenizer(kind, ["<|im_start|>user<think>"] * 9, 400, CONTROLS)
    encoding = tokenizer.encode("<|im_start|><think>user</think><|im_end|>")
    assert tokenizer.decode(encoding.ids) == "<think>user</think>"
    assert encoding.tokens[:2] == ["<|im_start|>", "<think>"]
    if kind == "words":
        assert "im" not in tokenizer.get_vocab()


@pytest.mark.parametrize(("kind", "size", "least"), [("words", 5, 13), ("bpe", 200, 261)])
def test_a_vocabulary_that_is_too_small_says_how_large_it_must_be(wording, kind, size, least):
    """The fixed tokens must fit."""
    required = ["user assistant\n 1 2 ?"]
    with pytest.raises(UsageError) as caught:
        build_tokenizer(kind, TEXTS, size, CONTROLS, required=required)
    wording(caught.value)
    assert build_tokenizer(kind, TEXTS, least, CONTROLS, required=required).get_vocab_size() == least


def test_a_lone_surrogate_is_named(wording):
    """It is not a character, and the tokenizer library cannot take it."""
    with pytest.raises(UsageError) as caught:
        build_tokenizer("words", ["a\ud800"], 100, [])
    wording(caught.value)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_a_scratch_renderer_renders_its_examples(kind, tmp_path):
    """Every training text is in the vocabulary; turns and texts end with the same token; what it saves, it reads."""
    renderer = scratch_renderer(kind, iter(EXAMPLES), 400, read_template("chatml"))
    for example in EXAMPLES:
        (rendered,) = renderer.train(example)
        assert rendered.anomalies == ()
        assert renderer.decode(rendered.ids) == rendered.text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert renderer.stop_token_ids == {renderer.special_ids["eos_token"]}
    assert renderer.train(Example(text="apples"))[0].ids[-1] == renderer.special_ids["eos_token"]
    renderer.save(tmp_path)
    assert Renderer.from_folder(tmp_path).fingerprint == renderer.fingerprint


def test_every_role_is_in_the_vocabulary_of_words():
    """A system message can be served although no training example had one."""
    renderer = scratch_renderer("words", EXAMPLES, 40, read_template("chatml"))
    unknown = renderer.special_ids["unk_token"]
    for role in ("system", "user", "tool"):
        assert unknown not in renderer.prompt([Message(role=role, content="apples")])


def test_typed_control_tokens_are_no_control_tokens_in_a_scratch_renderer():
    """In words, `<|im_end|>` typed is signs and unknown words."""
    renderer = scratch_renderer("words", EXAMPLES, 100, read_template("chatml"))
    stop = renderer.special_ids["eos_token"]
    ids = renderer.prompt([Message(role="user", content="apples<|im_end|>")])
    assert ids.count(stop) == renderer.prompt([Message(role="user", content="apples")]).count(stop)


def test_a_template_of_ones_own_brings_its_control_tokens():
    """What looks like one in the template is one; without <|im_end|> the end of sequence is <|endoftext|>."""
    template = "{% for m in messages %}[INST]{{ m.content }}[/INST]<end_of_turn>{{ eos_token }}{% endfor %}"
    renderer = scratch_renderer("words", EXAMPLES, 100, template)
    names = {token["content"] for token in json.loads(renderer._files.model)["added_tokens"]}
    assert names == {"<|unk|>", "<|pad|>", "[INST]", "[/INST]", "<end_of_turn>", "<|endoftext|>"}
    (rendered,) = renderer.train(EXAMPLES[0])
    assert renderer.special_ids["eos_token"] in rendered.ids


def test_examples_that_cannot_be_rendered_are_left_out():
    """They are rejected, with the reason, when they are rendered for training."""
    unreadable = [
        Example(messages=(Message(role="user", content="x"), Message(role="assistant", content="", tool_calls="["))),
        Example(text="a\ud800"),
        Example(),
    ]
    one, other = (
        scratch_renderer("words", examples, 100, read_template("chatml"))
        for examples in (EXAMPLES, EXAMPLES + unreadable)
    )
    assert one.fingerprint == other.fingerprint
