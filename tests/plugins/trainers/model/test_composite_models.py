"""Models that also see (Gemma 3) have their language model in `text_config`; it is checked as a plain model is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from modelwright.core.api import ModelwrightError
from modelwright.core.api.hf_folder import CONFIG, context_length, vocabulary_size
from modelwright.plugins.trainers.model.load import check_fits


@pytest.fixture(scope="module")
def gemma() -> Gemma3Config:
    """A tiny Gemma 3's."""
    small = {"num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}
    text = {**small, "vocab_size": 128, "max_position_embeddings": 64, "num_key_value_heads": 1, "head_dim": 8}
    return Gemma3Config(text_config=text, vision_config={**small, "image_size": 28, "patch_size": 14})


def test_a_sequence_beyond_the_context_of_a_composite_model_is_refused(gemma, tmp_path):
    """As one beyond a plain model's is; what just fits is taken."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gemma)
    check_fits(model, largest_token=127, longest=64, tokens=tmp_path)
    with pytest.raises(ModelwrightError, match=r"65 tokens.* 64"):
        check_fits(model, largest_token=127, longest=65, tokens=tmp_path)
    with pytest.raises(ModelwrightError, match="128"):
        check_fits(model, largest_token=128, longest=64, tokens=tmp_path)


def test_a_config_says_the_same_in_memory_and_on_disk(gemma, tmp_path):
    """So that engines, trainers and the checks before them agree."""
    gemma.save_pretrained(tmp_path)
    for config in (gemma.to_dict(), json.loads((tmp_path / CONFIG).read_text())):
        assert (context_length(config), vocabulary_size(config)) == (64, 128)


def test_tokens_that_are_new_to_a_composite_base_are_noticed(gemma, tmp_path, monkeypatch):
    """The notice about growing embeddings, as with a plain base."""
    from modelwright.core.stages.train import worker as train

    gemma.save_pretrained(tmp_path)
    monkeypatch.setattr(train, "token_count", lambda _: 130)
    notices: list[str] = []
    worker = SimpleNamespace(
        folder=SimpleNamespace(stage=lambda _: tmp_path),
        config=SimpleNamespace(model=SimpleNamespace(scratch=None)),
        emit=lambda _, data: notices.append(data["text"]),
    )
    assert train._vocabulary(worker, tmp_path) == 130
    [notice] = notices
    assert "128" in notice
    assert "130" in notice
