"""Small models with byte-level tokenizers, as folders and as GGUF files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from small_models import small
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from modelwright.core.chat.templates import CHATML

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


def byte_tokenizer(split=DIGITS, *, merges=(), **options) -> Tokenizer:
    """Every byte a token, then the merges, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), **options))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIAL])
    return tokenizer


def folder_of(
    place: Path, kind: str = "llama", *, dtype=torch.float32, tokenizer=None, template=CHATML, **changes
) -> Path:
    """A base whose end of sequence is `<|endoftext|>`, with a template that ends turns by `<|im_end|>`."""
    tokenizer = tokenizer or byte_tokenizer()
    end = tokenizer.token_to_id(SPECIAL[0])
    names = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    rows = tokenizer.get_vocab_size() + 5
    model = small(kind, **{"vocab_size": rows, "tie_word_embeddings": False, **names, **changes})
    model.to(dtype).save_pretrained(place)
    tokenizer.save(str(place / "tokenizer.json"))
    config = {"eos_token": SPECIAL[0], "tokenizer_class": "PreTrainedTokenizerFast"}
    (place / "tokenizer_config.json").write_text(json.dumps(config | ({"chat_template": template} if template else {})))
    return place
