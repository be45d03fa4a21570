"""MFU is the share of what the device can do: never more than all of it, on a busy machine too."""

from __future__ import annotations

import time

import pytest
import torch
import transformers

from modelwright.plugins.trainers import memory
from modelwright.plugins.trainers.memory import Meter
from modelwright.plugins.trainers.ranks import Ranks

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def model_of(kind, **more):
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **SIZES, **more))


@pytest.fixture
def meter(monkeypatch):
    """Makes the meter of a model whose device is measured as given, one measurement after the other."""

    def make(model, *peaks):
        measurements = iter(peaks)
        monkeypatch.setattr(memory, "peak_flops", lambda _device, _precision: next(measurements))
        return Meter(model, torch.device("cpu"), torch.float32, length=8, ranks=Ranks())

    return make


def step(meter, seconds):
    """The facts of a step of 64 tokens that took this time."""
    return meter.measured(64, 64, time.perf_counter() - seconds)


def test_a_step_faster_than_the_device_measures_it_again(meter):
    """The first measurement was made on a busy machine."""
    model = model_of("llama")
    operations = meter(model, 1.0).flops(64, 64)
    busy = meter(model, operations / 100, operations * 2)
    assert step(busy, 200)["mfu"] == pytest.approx(0.5, rel=0.01)
    assert step(busy, 1)["mfu"] == pytest.approx(0.5, rel=0.01)
    assert step(busy, 2)["mfu"] == pytest.approx(0.25, rel=0.01)
    assert busy.facts()["peak_flops"] == pytest.approx(operations * 2, rel=0.01)


def test_where_the_device_stays_slower_there_is_no_mfu(meter):
    """And it is not measured without end: each measurement takes time."""
    busy = meter(model_of("llama"), *[1.0] * 4)
    for _ in range(6):
        assert step(busy, 1).keys() == {"seconds", "memory"}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
        ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}),
    ],
)
def test_experts_count_where_a_token_is_sent_to_them(meter, kind, more):
    """All of them would be several times what is computed."""
    model = model_of(kind, **more)
    experts = sum(each.numel() for name, each in model.named_parameters() if ".experts." in name)
    assert experts >= 2 * 8 * 3 * 16 * 32
    others = sum(each.numel() for name, each in model.named_parameters() if ".experts." not in name)
    others -= model.get_input_embeddings().weight.numel()
    attention = 6 * 2 * 16 * 8
    assert meter(model, 1.0).flops(1, 1) == pytest.approx(6 * (others + experts / 4) + attention)
