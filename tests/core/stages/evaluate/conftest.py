"""A registry with tiny random models, made once; every test works on a copy of its own."""

import json
import shutil
from pathlib import Path

import pytest

from modelwright import NewModel
from modelwright.core.chat.templates import CHATML
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry

CONTEXT = 256


def write_tiny(folder: Path, *, seed: int, context: int = CONTEXT) -> Path:
    """A random Llama that writes varied text, with a tokenizer of bytes and ChatML's control tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=258,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=context,
            bos_token_id=256,
            eos_token_id=257,
        )
    )
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(8.0)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))
    return folder


class Store:
    """A registry of models for one test."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.url = f"sqlite:///{folder / 'registry.db'}"
        self.registry = open_registry(self.url, discover())

    def add(self, name: str, folder: Path):
        """Register a model folder as the next version of a name."""
        version = len(self.registry.find(name)) + 1
        return self.registry.add(NewModel(name=name, fingerprint=f"{name}-{version}"), folder)

    def metrics(self, name: str, version: int = 1):
        """The figures of a version."""
        return self.registry.get(name, version).metrics


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Folders of models: two that answer, and one whose context is too small for any question."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "one": write_tiny(folder / "one", seed=1),
        "two": write_tiny(folder / "two", seed=2),
        "tight": write_tiny(folder / "tight", seed=3, context=8),
    }


@pytest.fixture
def store(tmp_path, tiny_models, monkeypatch) -> Store:
    """A registry with `one` (2 versions) and `two`; it is the one that commands use."""
    store = Store(tmp_path / "store")
    store.folder.mkdir()
    store.add("one", tiny_models["two"])
    store.add("one", tiny_models["one"])
    store.add("two", tiny_models["two"])
    monkeypatch.setenv("MODELWRIGHT_REGISTRY", store.url)
    return store


@pytest.fixture
def broken(tmp_path, tiny_models) -> Path:
    """A model folder whose weights are cut short."""
    folder = shutil.copytree(tiny_models["one"], tmp_path / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    return folder


@pytest.fixture
def questions(tmp_path, rows_file) -> Path:
    """A test set of 12 problems in the form of the format math."""
    rows = [{"question": f"What is {a} and {a}?", "answer": f"{a}+{a} #### {2 * a}"} for a in range(12)]
    return rows_file(tmp_path / "Sums of 2.jsonl", rows)
