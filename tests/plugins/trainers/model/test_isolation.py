"""Documents of a pack do not see each other: for every kind of model and attention, and those that mix are refused."""

from __future__ import annotations

import pytest
import torch
from small_models import HYBRID, Forward, rows_of
from small_models import small as small_model

from modelwright.core.api import ModelwrightError
from modelwright.core.testing.trainer import Recorder, TrainerContract, counting_rows, make_job, write_token_folder
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.batches.micro_batches import collate
from modelwright.plugins.trainers.local import LocalTrainer
from modelwright.plugins.trainers.model import attention as attention_module
from modelwright.plugins.trainers.model import loss as loss_module
from modelwright.plugins.trainers.model.attention import model_inputs
from modelwright.plugins.trainers.model.isolation import check_isolation
from modelwright.plugins.trainers.model.loss import TrainedLogits

MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gemma": {},
    "gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 16},
    "gpt_neox": {},
    "phi": {"num_key_value_heads": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
# FlexAttention is compiled, which takes half a minute: one model with it, and one whose layers differ in their masks.
PAIRS = [
    (kind, attention) for kind in MODELS for attention in ("eager", "sdpa") if (kind, attention) != ("gemma2", "sdpa")
]
PAIRS += [pytest.param(kind, "flex_attention", marks=pytest.mark.long) for kind in ("llama", "gemma3_text")]

LENGTHS = [[5, 9, 1, 7], [12, 3, 2], [6]]


def small(kind, attention="eager", **changes):
    return small_model(kind, attention, **changes).eval()


def packs():
    rows = iter(rows_of([length for pack in LENGTHS for length in pack]))
    return [[next(rows) for _ in pack] for pack in LENGTHS]


def check(model, precision=torch.float32, rows=None):
    check_isolation(Forward(model, precision), TrainedLogits(model), rows or packs())


@pytest.mark.parametrize(("kind", "attention"), PAIRS)
def test_packed_logits_are_those_of_each_document_alone(kind, attention):
    """To 1e-5 in float32, in a batch of three packs with padding; and the check agrees."""
    torch.compiler.reset()  # what was compiled for another model counts towards a limit
    model = small(kind, attention, **MODELS[kind])
    batch = collate(packs())
    with torch.no_grad():
        logits = model(**model_inputs(model, batch), use_cache=False).logits
        for index, pack in enumerate(packs()):
            start = 0
            for row in pack:
                end = start + len(row.input_ids)
                alone = model(input_ids=torch.tensor(row.input_ids[None].astype(int)), use_cache=False).logits[0]
                torch.testing.assert_close(logits[index, start:end], alone, rtol=1e-5, atol=1e-5)
                start = end
    check(model)


@pytest.mark.parametrize("kind", MODELS)
def test_sequences_end_to_end_are_as_good_as_beside_each_other(kind, monkeypatch):
    """The form that kernels want which look for documents in a batch of one: the logits are the same."""
    model = small(kind, **MODELS[kind])
    batch = collate(packs())
    logits = TrainedLogits(model)
    with torch.no_grad():
        beside = logits.at(batch, batch.positions)
        monkeypatch.setattr(attention_module, "attention_of", lambda _: "flash_attention_2")
        shape = model_inputs(model, batch)["input_ids"].shape
        end_to_end = logits.at(batch, batch.positions)
    assert shape == (1, batch.input_ids.numel())
    torch.testing.assert_close(end_to_end, beside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=["autocast", "without"])
def test_flex_attention_gets_numbers_of_one_precision(dtype, monkeypatch):
    """Rotary embeddings leave float32 beside bfloat16 under autocast, which torch 2.8 to 2.10 refuse."""
    seen = set()

    def flex(_module, query, key, value, _mask, **_):
        seen.add((query.dtype, key.dtype, value.dtype))
        return query.transpose(1, 2), None

    monkeypatch.setattr(attention_module, "flex_attention_forward", flex)
    model = small("llama", "flex_attention", num_key_value_heads=2)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert seen == {(dtype or torch.float32,) * 3}


@pytest.mark.parametrize(("kind", "attention"), PAIRS[:-2])
def test_isolation_holds_in_bfloat16(kind, attention):
    """Its rounding is not a leak."""
    check(small(kind, attention, **MODELS[kind]), torch.bfloat16)


def leak_by_mask(model, inputs):
    return inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}


def leak_by_ignoring(model, inputs):
    return {"input_ids": inputs["input_ids"], "attention_mask": None}


def leak_by_positions(model, inputs):
    """Isolated, but the positions of each document go on from the one before."""
    position_ids = inputs["position_ids"]
    shifted = position_ids + 2 * (position_ids.diff(prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)
    return inputs | {"position_ids": shifted}


LEAKS = [
    ("llama", leak_by_mask, "mixes the documents of a pack: the logits of example row-"),
    ("llama", leak_by_ignoring, "mixes the documents"),
    ("gpt2", leak_by_positions, "computes other logits for example row-9 in a pack than alone"),
]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "leak", "line"), LEAKS)
def test_what_leaks_is_refused(kind, leak, line, precision, monkeypatch):
    """A mask of ones, a model that ignores positions, and positions that go on: each is reported in one line."""
    model, right = small(kind, **MODELS[kind]), model_inputs

    def wrong(model, batch):
        found = right(model, batch)
        return found if batch.position_ids is None else leak(model, found)

    monkeypatch.setattr(loss_module, "model_inputs", wrong)
    with pytest.raises(ModelwrightError, match=line) as caught:
        check(model, precision)
    assert str(caught.value).startswith(f"the model ({kind}, attention eager) ")
    assert str(caught.value).endswith(': set [data.tokens] packing = "bucket"')
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_state_that_runs_on_is_refused(precision):
    """A hybrid of Mamba takes positions, and its state does not heed them on the CPU."""
    with pytest.raises(ModelwrightError, match="mixes the documents of a pack"):
        check(small("bamba", **HYBRID), precision)


def test_a_model_without_positions_is_refused():
    """Mamba has none to give."""
    model = small("mamba", state_size=4)
    with pytest.raises(ModelwrightError, match=r"the model \(mamba, .*\) takes no position_ids"):
        check(model)


def test_the_check_leaves_no_trace():
    """Mode, weights and random states stay: a resumed training asks again, and goes on as if it had not."""
    model = small("llama", attention_dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class _Local(TrainerContract):
    def trainer(self):
        return LocalTrainer(LocalOptions())


def test_a_training_on_packs_begins_with_the_check(tmp_path):
    """A model that mixes documents is refused before the first step; on rows it is trained."""
    (tmp_path / "base").mkdir()
    small("bamba", **HYBRID).config.save_pretrained(tmp_path / "base")
    rows = counting_rows(6)
    packed = write_token_folder(tmp_path / "packed", rows, packs=[[0, 1], [2, 3], [4, 5]])
    recorder = Recorder()
    settings = _Local().settings(max_steps=1, batch_size=3)
    with pytest.raises(ModelwrightError, match="mixes the documents of a pack"):
        _Local().train(make_job(tmp_path, recorder, settings, tokens=packed))
    assert recorder.steps() == []
    alone = write_token_folder(tmp_path / "alone", rows, packs=[[row] for row in range(6)])
    assert _Local().train(make_job(tmp_path, Recorder(), settings, tokens=alone)).finished
