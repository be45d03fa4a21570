"""Tokenizers trained on the training data, for models that start from scratch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import ROLES, Example, Message
from modelwright.core.chat.renderer import Renderer
from modelwright.core.chat.templates import ChatTemplate, TemplateRefusedError, parse_array, template_message
from modelwright.core.chat.tokenizer_files import TokenizerFiles
from modelwright.core.extras import require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["words", "bpe"]

UNKNOWN = "<|unk|>"
PAD = "<|pad|>"
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

# A word includes the space before it, so that decoding is concatenation; digits and punctuation are single tokens.
WORD_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"

# What looks like a control token in a template: <|im_start|>, <think>, </s>, [INST].
_CONTROL = re.compile(r"<\|[^\s|<>]+\|>|</?[a-z][a-z_]*>|\[/?[A-Z][A-Z_]*\]")


def build_tokenizer(
    kind: Kind, texts: Iterable[str], vocab_size: int, control_tokens: Sequence[str], *, required: Iterable[str] = ()
) -> Tokenizer:
    """Train a tokenizer; the same texts in the same order give the same tokenizer.

    Args:
        kind: "words": words with the space before them, single digits, signs and white space, the most frequent first;
            anything else is `<|unk|>`. "bpe": byte-level byte-pair encoding with single digits; it can encode any text.
        texts: the texts to train on; control tokens in them are ignored.
        vocab_size: maximum number of tokens, control tokens included; little text gives fewer.
        control_tokens: added last, in this order. A pair such as `<think>`, `</think>` stays in decoded text; all
            others are special.
        required: texts whose pieces are always in the vocabulary.

    Raises:
        UsageError: `vocab_size` is too small, or a text has a lone surrogate.
    """
    controls = list(dict.fromkeys(control_tokens))
    room = vocab_size - len(controls)
    split = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)")
    pieces = (piece for text in texts for piece in split.split(_valid(text)) if piece)
    if kind == "words":
        needed = [piece for text in required for piece in split.split(text) if piece]
        tokenizer = _words(pieces, room, len(controls), needed)
    else:
        tokenizer = _bpe(pieces, room, len(controls))
    token = require("tokenizers").AddedToken
    tokenizer.add_tokens([token(each, special=_is_special(each, controls), normalized=False) for each in controls])
    if kind == "words":
        tokenizer.add_special_tokens([UNKNOWN])
    return tokenizer


def _valid(text: str) -> str:
    if not _is_unicode(text):
        raise UsageError(f"the text {text!r:.60} contains a lone surrogate (half of a UTF-16 pair): fix its encoding")
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_special(token: str, controls: Sequence[str]) -> bool:
    """Whether decoding skips the token: everything except the tags of a pair; `<s>` is not a tag."""
    name = token.strip("</>")
    pair = {f"<{name}>", f"</{name}>"}
    return name == "s" or token not in pair or not pair <= set(controls)


def _words(texts: Iterable[str], room: int, controls: int, required: Sequence[str]) -> Tokenizer:
    library = require("tokenizers")
    models, decoders = require("tokenizers.models"), require("tokenizers.decoders")
    tokenizer: Tokenizer = library.Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = require("tokenizers.pre_tokenizers").Split(library.Regex(WORD_PIECES), "isolated")
    tokenizer.decoder = decoders.Fuse()
    everything = require("tokenizers.trainers").WordLevelTrainer(
        vocab_size=2**31, min_frequency=0, special_tokens=[UNKNOWN], show_progress=False
    )
    tokenizer.train_from_iterator(texts, everything)
    # By decreasing frequency, then by text.
    ranked = [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    first = [UNKNOWN, *(piece for text in required for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))]
    chosen = list(dict.fromkeys([*first, *ranked]))[: max(room, 0)]
    if not set(first) <= set(chosen):
        least = len(set(first)) + controls
        raise UsageError(
            f'vocab_size {room + controls} is too small for a "words" tokenizer: it needs at least {least}'
        )
    tokenizer.model = models.WordLevel({piece: number for number, piece in enumerate(chosen)}, unk_token=UNKNOWN)
    return tokenizer


def _bpe(texts: Iterable[str], room: int, controls: int) -> Tokenizer:
    library = require("tokenizers")
    pre_tokenizers = require("tokenizers.pre_tokenizers")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if room < len(alphabet):
        least = len(alphabet) + controls
        raise UsageError(f'vocab_size {room + controls} is too small for a "bpe" tokenizer: it needs at least {least}')
    tokenizer: Tokenizer = library.Tokenizer(require("tokenizers.models").BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = require("tokenizers.decoders").ByteLevel()
    trainer = require("tokenizers.trainers").BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def scratch_renderer(kind: Kind, examples: Iterable[Example], vocab_size: int, template: str) -> Renderer:
    """Build a renderer from the examples as `template` shows them.

    Control tokens are those found in the source of the template, `<|pad|>` and, for "words", `<|unk|>`. The
    end-of-sequence token is `<|im_end|>` if the template has it, so that turns and texts end alike, else
    `<|endoftext|>`.

    Args:
        kind: as for `build_tokenizer`.
        examples: the training examples; those that cannot be rendered are skipped (they are rejected later).
        vocab_size: maximum number of tokens.
        template: the text of a chat template.

    Raises:
        UsageError: the template cannot be read, or `vocab_size` is too small.
    """
    compiled = ChatTemplate(template)
    found = dict.fromkeys(_CONTROL.findall(template))
    eos = END_OF_TURN if END_OF_TURN in found else END_OF_TEXT
    special = {"eos_token": eos, "pad_token": PAD} | ({"unk_token": UNKNOWN} if kind == "words" else {})
    tokenizer = build_tokenizer(
        kind,
        _rendered(compiled, examples, special),
        vocab_size,
        [PAD, *(found | {eos: None})],
        required=_skeletons(compiled, special),
    )
    config = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return Renderer(TokenizerFiles(model=tokenizer.to_str(), config=config, template=template))


def _rendered(template: ChatTemplate, examples: Iterable[Example], special: dict[str, str]) -> Iterator[str]:
    for example in examples:
        if example.text is not None:
            text = example.text
        else:
            try:
                tools = None if example.tools is None else parse_array(example.tools, "tools")
                messages = [template_message(message) for message in example.messages]
                text = template.render(messages, tools=tools, special=special, add_generation_prompt=False)
            except TemplateRefusedError:
                continue
        if _is_unicode(text):
            yield text


def _skeletons(template: ChatTemplate, special: dict[str, str]) -> Iterator[str]:
    """What the template writes around messages of each role, so that roles missing from the data can be tokenized."""
    thinking = template_message(Message(role="assistant", content="", thinking=" "))
    for messages in (*([template_message(Message(role=role, content=""))] for role in ROLES), [thinking]):
        try:
            yield template.render(messages, tools=None, special=special, add_generation_prompt=True)
        except TemplateRefusedError:
            continue
