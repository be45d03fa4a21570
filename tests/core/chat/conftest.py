"""Chat templates of the shapes in use, and tokenizers of the kinds in use, all tiny and made here."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from modelwright.core.chat.renderer import Renderer, read_template

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set rule = messages[0].content | trim %}{% set turns = messages[1:] %}
{%- else %}
    {%- set rule = '' %}{% set turns = messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}
{{- rule + '<|eot_id|>' }}
{%- for message in turns %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
    {%- else %}{{ raise_exception('only user and assistant') }}{% endif %}
{%- endfor %}
"""

# Thinking is shown after the last question only; the generation prompt does not open it.
QWEN3 = """\
{%- if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') if loop.index0 > ns.last else content }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# The generation prompt opens the thinking, which no history shows: prompts are not prefixes.
R1 = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}{{ '[A]' + message.content.split('</think>')[-1] + eos_token }}
    {%- else %}{{ '[U]' + message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[A]<think>\\n' }}{% endif %}
"""

# Like gpt-oss: the answer's last token depends on whether another turn follows.
CHANNELS = """\
{%- for message in messages %}
    {%- if message.role != 'assistant' %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- else %}
        {%- if message.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
        {{- '<|return|>' if loop.last else '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
"""

TEMPLATES = {
    "chatml": read_template("chatml"),
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "r1": R1,
    "channels": CHANNELS,
}

SPECIAL = [
    *("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "[U]", "[A]"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

CORPUS = [
    "system user assistant model Question Answer Rule Today Date What is 2 + 2? It is 4. Four, of course.\n\n",
    "the quick brown fox jumps over the lazy dog; hello world, hello again. Let me think: two and two\n",
] * 3


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _pieces() -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]


def unigram() -> Tokenizer:
    """As sentencepiece makes them: `</s>` is in the vocabulary, and plain text can become it."""
    words = ["▁is", "is", "▁hello", "hello", "▁the", "the", "▁2", "It", "▁It"]
    vocab = [(piece, 0.0 if number < 3 else -8.0) for number, piece in enumerate(_pieces())]
    tokenizer = Tokenizer(models.Unigram([*vocab, *((word, -4.0) for word in words)], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tokenizer


def llama2() -> Tokenizer:
    """Byte-pair encoding after sentencepiece, whose merges can make `</s>`; a prefix for each stretch of text."""
    vocab = _pieces()
    merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("▁", "i"), ("▁i", "s"), ("t", "h"), ("th", "e")]
    vocab += [left + right for left, right in merges if left + right not in vocab]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(vocab)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


KINDS = {"byte_level": byte_level, "unigram": unigram, "llama2": llama2, "words": words}


def _folder(
    folder: Path,
    kind: str,
    template: str | None,
    *,
    added: Sequence[AddedToken | str] | None = None,
    **config: object,
) -> Path:
    tokenizer = KINDS[kind]()
    if added is None:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TAGS])
    else:
        tokenizer.add_tokens(list(added))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        **({} if template is None else {"chat_template": template}),
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def special_tokens():
    return SPECIAL


@pytest.fixture(scope="session")
def tags():
    """The added tokens that are not special."""
    return TAGS


@pytest.fixture(scope="session")
def make_folder():
    """(folder, kind, template, **config) → the folder, a tokenizer in Hugging Face layout; `added`: its tokens."""
    return _folder


@pytest.fixture(scope="session")
def make_renderer(tmp_path_factory):
    """(a template's name or text, a tokenizer's kind) → a renderer."""

    @functools.cache
    def make(template, kind="byte_level"):
        text = TEMPLATES.get(template, template)
        return Renderer.from_folder(_folder(tmp_path_factory.mktemp("tokenizer"), kind, text))

    return make


@pytest.fixture(scope="session")
def native():
    """A renderer's tokenizer, as the library alone reads what the renderer saves."""

    @functools.cache
    def load(renderer):
        return Tokenizer.from_str(renderer._files.model)

    return load
