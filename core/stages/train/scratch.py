"""A model from `[model.scratch]`: a config without weights, which the trainer initialises from the run's seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelwright.core.api import files
from modelwright.core.chat.renderer import Renderer
from modelwright.core.config.schema import ScratchConfig


def scratch_config(scratch: ScratchConfig, renderer: Renderer, *, max_length: int) -> dict[str, Any]:
    """The `config.json` of a Llama in Hugging Face layout: its context is `max_length` tokens, embeddings are tied."""
    eos = sorted(renderer.stop_token_ids)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": renderer.vocab_size,
        "hidden_size": scratch.hidden_size,
        "intermediate_size": scratch.intermediate_size or 4 * scratch.hidden_size,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "num_key_value_heads": scratch.heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        # The embeddings are tied, so this is the scale of the logits at the beginning too: rows of length about 1.
        # The customary 0.02 suits widths of some thousands; a narrow model begins so flat with it that it learns
        # several times slower (benchmarks/README.md).
        "initializer_range": scratch.hidden_size**-0.5,
    }


def write_scratch(folder: Path, scratch: ScratchConfig, renderer: Renderer, *, max_length: int) -> None:
    """Write a model folder that has a config and no weights."""
    files.write_json(folder / "config.json", scratch_config(scratch, renderer, max_length=max_length))
