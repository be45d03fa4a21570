from __future__ import annotations

from pathlib import Path

import pytest

VOCABULARY = 320  # 256 bytes, 3 special tokens, some pairs


def byte_level_tokenizer():
    """A byte-level BPE tokenizer whose tokens often hold parts of characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer is 42", "größer als €5", "日本語の文", "🙂🙃 emoji"] * 3, trainer)
    return tokenizer


def save_model(folder: Path, config) -> Path:
    """A random model of that config, with a tokenizer, in Hugging Face layout."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    # Untrained weights of the usual size repeat one token for ever; larger ones make varied text.
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1 and "rotary" not in name:
                weights.mul_(4.0)
    model.save_pretrained(folder)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def llama_config(**changes):
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "bos_token_id": 2,
            "eos_token_id": 1,
            **changes,
        }
    )


@pytest.fixture(scope="session")
def make_model():
    """`make_model(folder, config)` saves a tiny random model with a byte-level tokenizer of 320 tokens."""
    return save_model


@pytest.fixture(scope="session")
def small_llama():
    """`small_llama(**changes)` is the config of a tiny Llama."""
    return llama_config


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """The folder of a tiny random Llama."""
    return save_model(tmp_path_factory.mktemp("llama"), llama_config())


@pytest.fixture
def start():
    """Load a folder with options; the engines are closed after the test."""
    from modelwright.plugins.engines import TorchOptions
    from modelwright.plugins.engines.torch_engine import TorchEngine

    engines = []

    def make(folder, **options):
        engine = TorchEngine(TorchOptions(**{"device": "cpu", **options}))
        engines.append(engine)
        engine.load(folder)
        return engine

    yield make
    for engine in engines:
        engine.close()
