"""Rotary positions that are stretched: as transformers takes them, and alike in training, config and engine."""

from __future__ import annotations

import json

import pytest
from small_models import small
from transformers import AutoConfig

from modelwright.core.api import ModelwrightError, UsageError
from modelwright.core.api.hf_folder import context_length
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job, write_model, write_token_folder
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.local import LocalTrainer
from modelwright.plugins.trainers.model.attention import stretch_rotary_positions

YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def config(kind="llama", **changes):
    return AutoConfig.for_model(kind, **{"max_position_embeddings": 64, "rope_theta": 5000.0} | changes)


def test_the_context_grows_by_the_factor_from_the_original_one():
    """And the base period stays; what the config had is replaced, and its original context counts."""
    stretched = config()
    stretch_rotary_positions(stretched, YARN)
    assert stretched.rope_parameters == {**YARN, "rope_theta": 5000.0, "original_max_position_embeddings": 64}
    assert context_length(stretched.to_dict()) == 256
    stretch_rotary_positions(stretched, {"rope_type": "linear", "factor": 2.0})
    assert stretched.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    assert context_length(stretched.to_dict()) == 128
    again = config(rope_parameters={**LLAMA3, "rope_theta": 5000.0, "original_max_position_embeddings": 8})
    stretch_rotary_positions(again, YARN)
    assert context_length(again.to_dict()) == 32


@pytest.mark.parametrize(
    ("of", "scaling"),
    [
        (config(), {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}),
        (config(), LLAMA3 | {"high_freq_factor": 0.5}),
        (config(), {"rope_type": "linear", "factor": 2.0, "beta_fast": 8.0}),
        (small("gpt2").config, YARN),
        (small("gemma3_text").config, YARN),
    ],
    ids=["lacks one", "order", "another kind's", "learned positions", "by layer"],
)
def test_what_transformers_does_not_accept_is_one_line(of, scaling, wording, caplog):
    """It only logs most of it, and would train with something else."""
    with pytest.raises(UsageError) as caught:
        stretch_rotary_positions(of, scaling)
    wording(caught.value)
    assert caplog.text == ""


def test_a_base_learns_sequences_beyond_its_context_and_its_config_says_how(tmp_path):
    """Any program that loads it computes what was trained; without the scaling the same tokens are refused."""
    import torch
    from transformers import AutoModelForCausalLM

    from modelwright.plugins.trainers.model.load import load_model

    base = write_model(tmp_path / "base", weights=True)
    rows = [("long", [5] * 100, [False] + [True] * 99)]
    settings = TrainerContract().settings(max_steps=1, batch_size=1)
    trainer = LocalTrainer(LocalOptions())
    tokens = write_token_folder(tmp_path / "tokens", rows)
    with pytest.raises(ModelwrightError, match="the model's context is 64"):
        trainer.train(make_job(tmp_path / "short", Recorder(), settings, model=base, tokens=tokens))
    job = make_job(tmp_path / "long", Recorder(), settings, model=base, tokens=tokens, rope_scaling=YARN)
    assert trainer.train(job).finished
    written = json.loads((job.output / "config.json").read_text())
    assert (written["rope_parameters"]["rope_type"], context_length(written)) == ("yarn", 256)
    ids = torch.arange(64).remainder(16).unsqueeze(0)
    with torch.no_grad():
        served = AutoModelForCausalLM.from_pretrained(job.output)(ids).logits
        trained = load_model(make_job(tmp_path / "again", Recorder(), settings, model=job.output, tokens=tokens))
        plain = AutoModelForCausalLM.from_pretrained(job.output, config=AutoConfig.from_pretrained(base))(ids).logits
    torch.testing.assert_close(served, trained(ids).logits)
    assert not torch.allclose(served, plain, rtol=1e-5, atol=0)
