"""Small causal language models of many kinds, with random weights, and rows for them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from attrs import define
from transformers import AutoConfig, AutoModelForCausalLM

from modelwright.core.api import TokenRow

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Wide enough that attention weighs in the logits.
    "initializer_range": 0.3,
}
HYBRID = {
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "attn_layer_indices": [1],
}


def small(kind: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A model of 40 tokens and two layers; the same one each time."""
    shared = {} if kind == "gpt2" else SMALL
    config = AutoConfig.for_model(kind, **shared | {"vocab_size": 40, "initializer_range": 0.3} | changes)
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def rows_of(lengths: Sequence[int]) -> list[TokenRow]:
    """Random rows of these lengths, all of them trained; the same ones each time."""
    generator = torch.Generator().manual_seed(0)

    def row(length: int) -> TokenRow:
        ids = torch.randint(3, 40, (length,), generator=generator).to(torch.int32).numpy()
        return TokenRow(f"row-{length}", ids, ids >= 0)

    return [row(length) for length in lengths]


@define(slots=False)
class Forward:
    """The forward pass of a trainer's strategy in a precision, and nothing else of it."""

    model: Any
    precision: torch.dtype = torch.float32
    device = torch.device("cpu")

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision of the forward pass."""
        lower = self.precision != torch.float32
        return torch.autocast("cpu", dtype=self.precision) if lower else contextlib.nullcontext()
