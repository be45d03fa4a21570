"""What a Hugging Face folder says of its model, in the ways of plain and of composite configs (`text_config`)."""

from __future__ import annotations

import json

import pytest

from modelwright.core.api.hf_folder import (
    context_length,
    has_weights,
    is_adapter,
    other_weights,
    text_value,
    vocabulary_size,
)
from modelwright.core.models.hf_folder import folder_context, folder_problems
from modelwright.core.testing.trainer import write_model

# Gemma 3's, and older ones of LLaVA: the language model's numbers are in a table of their own.
TEXT = {"max_position_embeddings": 64, "vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 2}
COMPOSITE = {"text_config": TEXT}


@pytest.mark.parametrize(
    ("config", "context", "vocabulary"),
    [
        ({"max_position_embeddings": 64, "vocab_size": 128}, 64, 128),
        ({"n_positions": 64, "vocab_size": 128}, 64, 128),
        (COMPOSITE, 64, 128),
        # Of LLaVA 1.5: the outer number is the language model's before it got tokens for images.
        ({**COMPOSITE, "vocab_size": 120}, 64, 128),
        ({"text_config": {}, "max_position_embeddings": 64, "vocab_size": 128}, 64, 128),
        ({"text_config": None, "n_ctx": 64}, 64, None),
        ({"max_position_embeddings": -1, "vocab_size": "many"}, None, None),
        ({}, None, None),
    ],
    ids=str,
)
def test_numbers_are_found_in_plain_and_composite_configs(config, context, vocabulary, tmp_path):
    """In the same way for the context, the vocabulary and any other value."""
    assert (context_length(config), vocabulary_size(config)) == (context, vocabulary)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert folder_context(tmp_path) == context


def test_the_language_model_of_a_composite_config_has_its_own_sizes():
    """Width and depth are not those of the part that sees."""
    config = {**COMPOSITE, "hidden_size": 99, "vision_config": {"num_hidden_layers": 27}}
    assert (text_value(config, "hidden_size"), text_value(config, "num_hidden_layers")) == (16, 2)


@pytest.mark.parametrize(
    ("names", "whole", "others"),
    [
        (["model.safetensors"], True, []),
        (["model.safetensors.index.json"], True, []),
        (["pytorch_model.bin", "a.PTH", "model.gguf"], False, ["a.PTH", "model.gguf", "pytorch_model.bin"]),
        (["pytorch_model.bin.index.json", "a.pkl", "README.md"], False, ["a.pkl", "pytorch_model.bin.index.json"]),
        (["adapter_model.safetensors", "config.json"], False, []),
    ],
    ids=str,
)
def test_weights_are_known_by_their_files_names(names, whole, others, tmp_path):
    """Safetensors, and what is not read, in any spelling."""
    for name in names:
        (tmp_path / name).touch()
    assert has_weights(tmp_path) == whole
    problem = other_weights(tmp_path)
    assert (problem or "").count("convert them") == bool(others)
    assert all(name in problem for name in others)


@pytest.mark.parametrize("more", ["model.safetensors", "model.safetensors.index.json"])
def test_an_adapter_has_no_weights_of_a_whole_model(more):
    """A whole model beside peft's config was merged, or is both; it is loaded as a whole one."""
    assert is_adapter(["adapter_config.json", "adapter_model.safetensors", "config.json"])
    assert not is_adapter(["adapter_config.json", more])


@pytest.fixture
def composite(tmp_path):
    """A folder with the tensors of a language model under a composite model's names."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    write_model(folder, weights=True, vocabulary=128)
    tensors = load_file(folder / "model.safetensors")
    save_file({f"language_model.{name}": value for name, value in tensors.items()}, folder / "model.safetensors")
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": plain}))
    return folder


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 129), ("hidden_size", 24)])
def test_a_composite_config_is_compared_with_its_weights(key, value, composite, wording):
    """As a plain one is."""
    config = json.loads((composite / "config.json").read_text())
    config["text_config"][key] = value
    (composite / "config.json").write_text(json.dumps(config))
    *_, line = folder_problems(composite)
    assert f"{key} {value}" in line
    assert "language_model.model.embed_tokens.weight" in line
    wording(line)
