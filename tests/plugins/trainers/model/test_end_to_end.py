"""Sequences end to end: the same training as below each other, for every model that can; the others are left alone."""

from __future__ import annotations

import json

import pytest
import torch
from small_models import HYBRID, Forward, rows_of, small

from modelwright.core.api import TrainSettings
from modelwright.core.testing.trainer import Recorder, counting_rows, make_job, write_token_folder
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.batches.micro_batches import collate, round_size
from modelwright.plugins.trainers.local import LocalTrainer
from modelwright.plugins.trainers.model.attention import DOCUMENT_ATTENTION, attention_of
from modelwright.plugins.trainers.model.isolation import lay_end_to_end
from modelwright.plugins.trainers.model.loss import TrainedLogits

WINDOW = {"sliding_window": 4}
MODELS = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {},
    "qwen3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "gemma": {},
    "gemma3_text": WINDOW | {"query_pre_attn_scalar": 16},
    "gpt_neox": {},
    "phi": {"num_key_value_heads": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "afmoe": {"sliding_window": 4, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
}
# A state runs on; convolutions too; windows that only a mask defines.
OTHERS = {
    "bamba": HYBRID,
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
    "llama4_text": {"attention_chunk_size": 4, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "qwen2_moe": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "num_experts": 4,
        "layer_types": ["sliding_attention"] * 2,
    }
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "phimoe": {"sliding_window": 4, "num_local_experts": 2},
}


def lay(model, *, requested="auto", precision=torch.float32):
    logits = TrainedLogits(model)
    return logits, lay_end_to_end(
        Forward(model, precision), logits, rows_of([2, 12, 5]), requested=requested, in_any_rank=bool
    )


def loss_and_gradients(model, logits, batches, precision):
    model.zero_grad()
    losses = []
    for batch in batches:
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            loss, each = logits.summed_loss(batch)
        loss.backward()
        losses += each.tolist()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    return losses, {name: parameter.grad.clone() for name, parameter in trained.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_gradients_are_those_of_each_row_alone(kind):
    """To 1e-5 in float32; windows, shared keys, experts and added positions included."""
    rows = rows_of([5, 9, 1, 7, 12, 3, 2])
    model = small(kind, **MODELS[kind])
    alone = loss_and_gradients(model, TrainedLogits(model), [collate([[row]]) for row in rows], torch.float32)
    model = small(kind, **MODELS[kind])
    logits, laid = lay(model)
    assert laid
    assert attention_of(model) == DOCUMENT_ATTENTION
    batch = collate([[row] for row in rows], end_to_end=True)
    assert batch.input_ids.shape == (1, round_size(sum(len(row.input_ids) for row in rows)))
    together = loss_and_gradients(model, logits, [batch], torch.float32)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_padding_has_no_positions_beyond_the_rows():
    """A model that learns its positions has no more of them."""
    model = small("gpt2", **MODELS["gpt2"] | {"n_positions": 4})
    logits = TrainedLogits(model)
    assert lay_end_to_end(Forward(model), logits, rows_of([2, 4, 3]), requested="auto", in_any_rank=bool)
    batch = collate([[row] for row in rows_of([4] * 41)], end_to_end=True)
    assert batch.input_ids.shape[1] - batch.tokens == 4
    batch = collate([[row] for row in rows_of([3] * 43)], end_to_end=True)
    assert batch.input_ids.shape[1] - batch.tokens == 7
    assert batch.position_ids.max() == 2
    assert torch.isfinite(logits.summed_loss(batch)[0])


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_bfloat16_differs_by_its_rounding(kind):
    """The attention itself is in float32 then."""
    rows = rows_of([5, 9, 7, 12, 3])
    model = small(kind, **MODELS[kind])
    alone, _ = loss_and_gradients(model, TrainedLogits(model), [collate([[row]]) for row in rows], torch.bfloat16)
    model = small(kind, **MODELS[kind])
    logits, laid = lay(model, precision=torch.bfloat16)
    assert laid
    batch = collate([rows], end_to_end=True)
    together, _ = loss_and_gradients(model, logits, [batch], torch.bfloat16)
    torch.testing.assert_close(together, alone, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_is_another_one_end_to_end_is_left_alone(kind):
    """It is found out by trying, or by its kinds of layers; its own attention stays."""
    model = small(kind, **OTHERS[kind])
    before = attention_of(model)
    assert not lay(model)[1]
    assert attention_of(model) == before


@pytest.mark.parametrize(("attention", "requested"), [("sdpa", "sdpa"), ("eager", "eager"), ("eager", "auto")])
def test_a_requested_attention_stays(attention, requested):
    """So does that of a model which has no other."""
    model = small("llama", attention)
    assert not lay(model, requested=requested)[1]
    assert attention_of(model) == attention


def test_trying_leaves_no_trace():
    """Mode, weights and random states stay: a resumed training asks again, and goes on as if it had not."""
    model = small("llama", attention_dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert lay(model)[1]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def train(folder, tokens, *, attention, **changes):
    """The step events, what it was trained with, and the config that it left."""
    recorder = Recorder()
    settings = TrainSettings(**{"max_steps": 4, "batch_size": 5, "learning_rate": 1e-2} | changes)
    job = make_job(folder, recorder, settings, tokens=tokens, attention=attention)
    assert LocalTrainer(LocalOptions(micro_batch_tokens=40)).train(job).finished
    (started,) = recorder.of("started")
    config = json.loads((job.output / "config.json").read_text())
    return recorder.of("step"), started["attention"], config


@pytest.mark.parametrize("packs", [None, [[0, 1], [2, 3, 4], [5], [6, 7], [8, 9, 10, 11]]])
def test_a_training_end_to_end_learns_the_same(tmp_path, packs):
    """Rows or packs; nothing of how it was computed is left in the model."""
    tokens = write_token_folder(tmp_path / "tokens", counting_rows(12), packs=packs)
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    laid, by_document, config = train(tmp_path / "one", tokens, attention="auto")
    padded, sdpa, other = train(tmp_path / "other", tokens, attention="sdpa")
    assert (by_document, sdpa) == (DOCUMENT_ATTENTION, "sdpa")
    assert config == other
    for one, two in zip(laid, padded, strict=True):
        assert (one["order"], one["tokens"], one["trained_tokens"]) == (
            two["order"],
            two["tokens"],
            two["trained_tokens"],
        )
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
