"""The trainer `local`: the contract of trainers, and what is its own."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from attrs import evolve

from modelwright.core.api import ModelwrightError, TrainSettings, UsageError
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import LocalOptions, modelwright_trainers, strategy
from modelwright.plugins.trainers.local import LocalTrainer


class TestLocalTrainer(TrainerContract):
    """The contract."""

    tolerance = 0.0

    def trainer(self):
        """The trainer, by its descriptor."""
        spec, *_ = modelwright_trainers()
        return spec.create()


@pytest.fixture
def settings():
    return TestLocalTrainer().settings


@pytest.fixture
def train():
    return TestLocalTrainer().train


def test_output_is_safetensors_with_config_and_generation_config(tmp_path, settings, train):
    """The model's folder holds what transformers needs, and no pickle; the caller adds the tokenizer."""
    job = make_job(tmp_path, Recorder(), settings(max_steps=1))
    train(job)
    assert {path.name for path in job.output.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert json.loads((job.output / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_an_output_that_was_damaged_is_made_again(tmp_path, settings, train):
    """What is recorded as finished is believed only while its files are what was written."""
    job = make_job(tmp_path, Recorder(), settings(max_steps=4, checkpoint_every=3))
    train(job)
    weights = (job.output / "model.safetensors").read_bytes()
    (job.output / "model.safetensors").write_bytes(weights[:-1])
    again = Recorder()
    assert train(evolve(job, emit=again.emit)).finished
    assert again.steps() == [4]
    assert (job.output / "model.safetensors").read_bytes() == weights


def test_weights_in_shards_are_loaded(tmp_path, settings, train):
    """A base saved in several files by an index is continued like any other."""
    from transformers import AutoModelForCausalLM

    whole = write_model(tmp_path / "whole", weights=True)
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert not (tmp_path / "base" / "model.safetensors").exists()
    job = make_job(tmp_path, Recorder(), settings(max_steps=1, learning_rate=1e-12))
    train(job)
    assert TestLocalTrainer().same(whole, job.output, tolerance=1e-6)


def test_weights_that_lack_a_tensor_are_refused(tmp_path, settings, train, wording):
    """Missing weights would be drawn at random: the model is refused, and the tensor named."""
    from safetensors.torch import load_file, save_file

    base = write_model(tmp_path / "base", weights=True)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelwrightError) as caught:
        train(make_job(tmp_path, Recorder(), settings()))
    assert "model.layers.1.mlp.up_proj.weight" in str(caught.value)
    wording(caught.value)


def test_damaged_weights_are_refused_in_one_line(tmp_path, settings, train):
    """A truncated safetensors file is an error that names the model."""
    base = write_model(tmp_path / "base", weights=True)
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelwrightError, match="cannot be loaded") as caught:
        train(make_job(tmp_path, Recorder(), settings()))
    assert "\n" not in str(caught.value)
    assert str(base) in str(caught.value)


CONFIGS = {
    "a width that the heads do not divide": {"hidden_size": 999},
    "no heads": {"num_attention_heads": 0},
    "a model type that is not causal": {"model_type": "t5"},
    "unknown rope": {"rope_parameters": {"rope_type": "x"}},
    "code of its own": {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    },
    "other shapes than the weights": {"vocab_size": 17},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_wrong_config_is_one_line(tmp_path, settings, train, what, wording):
    """Which model, what about it, and what to do; none of the library's paragraphs."""
    base = write_model(tmp_path / "base", weights=True)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | CONFIGS[what]))
    with pytest.raises(ModelwrightError) as caught:
        train(make_job(tmp_path, Recorder(), settings()))
    assert str(caught.value).startswith(f"{base}: ")
    wording(caught.value)


def test_a_missing_context_length_is_not_a_limit(tmp_path, settings, train):
    """Some configs have -1 for it."""
    base = write_model(tmp_path / "base", weights=True)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": -1}))
    assert train(make_job(tmp_path, Recorder(), settings(max_steps=1))).finished


def test_a_folder_without_config_is_refused(tmp_path, settings, train):
    """A base that is not a model is named."""
    job = make_job(tmp_path, Recorder(), settings())
    shutil.rmtree(job.model)
    with pytest.raises(UsageError, match=r"no config\.json"):
        train(job)


def test_a_sequence_beyond_the_context_is_refused(tmp_path, settings, train, wording):
    """The error says which setting makes the sequences short enough."""
    tokens = write_token_folder(tmp_path / "long", [("long", [1] * 65, [True] * 65)])
    with pytest.raises(ModelwrightError, match=r"65 tokens.* 64") as caught:
        train(make_job(tmp_path, Recorder(), settings(), tokens=tokens))
    wording(caught.value)


def test_the_device_may_be_given(tmp_path, settings):
    """It is no part of what the model depends on; a device that is not there is refused before anything is read."""
    recorder = Recorder()
    job = make_job(tmp_path, recorder, settings(max_steps=1))
    with pytest.raises(UsageError, match=r"^\[train.options\] device: device 'cuda:99' cannot be used: .*there is cpu"):
        LocalTrainer(LocalOptions(device="cuda:99")).train(evolve(job, model=tmp_path / "nowhere"))
    assert LocalTrainer(LocalOptions(device="cpu")).train(job).finished
    assert recorder.of("started")[0]["device"] == "cpu"
    with pytest.raises(ValueError, match="not 'gpu'"):
        LocalOptions(device="gpu")


@pytest.mark.parametrize(
    ("requested", "device", "exact", "precision"),
    [
        ("auto", "cuda:0", True, torch.bfloat16),
        ("auto", "cuda:1", False, torch.float32),
        ("auto", "xpu:0", True, torch.bfloat16),
        ("auto", "mps", True, torch.float32),
        ("auto", "cpu", True, torch.float32),
        ("bfloat16", "mps", True, torch.bfloat16),
        ("bfloat16", "cpu", True, torch.bfloat16),
        ("float32", "cuda:0", True, torch.float32),
    ],
)
def test_the_precision_is_what_the_device_computes_in(monkeypatch, requested, device, exact, precision):
    """On cards that are not here: bfloat16 where it is not emulated, but on request on a CPU or Apple's GPUs."""
    monkeypatch.setattr(strategy, "has_bfloat16", lambda _: exact)
    monkeypatch.setattr(strategy, "device_name", lambda _: "Tesla V100")
    precisions = strategy.precisions_of(TrainSettings(precision=requested, max_steps=1), None, torch.device(device))
    assert precisions == (precision, torch.float32)


def test_more_processes_than_one_are_refused(tmp_path, settings, train, wording):
    """This trainer is one process, and says so rather than training several models beside each other."""
    with pytest.raises(UsageError, match="2 processes") as caught:
        train(make_job(tmp_path, Recorder(), settings(processes=2)))
    wording(caught.value)


def test_bfloat16_trains_float32_weights(tmp_path, settings, train):
    """The precision is that of the forward pass; what is saved stays float32."""
    recorder = Recorder()
    job = make_job(tmp_path, recorder, settings(precision="bfloat16"))
    train(job)
    losses = [data["loss"] for data in recorder.of("step")]
    assert recorder.of("started")[0]["precision"] == "bfloat16"
    assert losses[-1] < losses[0] / 2
    assert json.loads((job.output / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_requested_attention_is_used(tmp_path, settings, train, attention):
    """Both give the same losses, to rounding."""
    losses = {}
    for name in (attention, "auto"):
        recorder = Recorder()
        train(make_job(tmp_path / name, recorder, settings(max_steps=3), attention=name))
        losses[name] = [data["loss"] for data in recorder.of("step")]
    assert losses[attention] == pytest.approx(losses["auto"], rel=1e-4)


def test_an_attention_that_does_not_exist_is_refused(tmp_path, settings, train):
    """The error names the model and what was asked for."""
    with pytest.raises(ModelwrightError, match="nonesuch"):
        train(make_job(tmp_path, Recorder(), settings(), attention="nonesuch"))


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, settings, train):
    """The losses are those without it, dropout included; on a CPU there is nothing to offload."""
    losses = []
    for kind in ("off", "on", "offload"):
        recorder = Recorder()
        write_model(tmp_path / kind / "base", dropout=0.2)
        train(make_job(tmp_path / kind, recorder, settings(max_steps=4, gradient_checkpointing=kind)))
        losses.append([data["loss"] for data in recorder.of("step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[1] == losses[2]


def test_the_gradient_is_clipped_by_its_norm_over_all_weights(tmp_path, settings):
    """After the step the first moments are those of a gradient of norm `clip_norm`; the event has the norm before."""
    from modelwright.plugins.trainers.local import SingleDevice

    model = torch.nn.Linear(2, 2)
    for clip_norm, expected in ((1.0, 1.0), (0.0, 10.0), (50.0, 10.0)):
        strategy = SingleDevice(
            model, settings(clip_norm=clip_norm), device=torch.device("cpu"), precision=torch.float32
        )
        model.weight.grad = torch.full((2, 2), 4.0)
        model.bias.grad = torch.full((2,), 18.0**0.5)
        assert strategy.step(1e-3) == pytest.approx(10.0)
        moments = [state["exp_avg"] for state in strategy._optimizer.state_dict()["state"].values()]
        norm = torch.cat([moment.flatten() for moment in moments]).norm() / (1 - 0.9)
        assert norm.item() == pytest.approx(expected, rel=1e-5)


def test_memory_that_does_not_suffice_is_one_line_with_what_to_set(tmp_path, settings, train, monkeypatch):
    """The error says which settings need less."""
    from modelwright.plugins.trainers.local import SingleDevice

    def full(self, loss):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SingleDevice, "backward", full)
    with pytest.raises(ModelwrightError, match=r"out of memory: set .* micro_batch_size"):
        train(make_job(tmp_path, Recorder(), settings()))


def test_rows_that_teach_nothing_are_left_out_and_counted(tmp_path, settings, train):
    """An epoch is the rows that teach something."""
    rows = [*counting_rows(10), ("empty", [1, 2, 3], [False] * 3), ("first", [1, 2], [True, False])]
    recorder = Recorder()
    tokens = write_token_folder(tmp_path / "some", rows)
    train(make_job(tmp_path, recorder, settings(max_steps=None, epochs=1, batch_size=4), tokens=tokens))
    started = recorder.of("started")[0]
    assert (started["examples"], started["skipped"], started["steps"]) == (10, 2, 3)
    assert sum(data["tokens"] for data in recorder.of("step")) == sum(len(ids) for _, ids, _ in rows[:10])


@pytest.mark.parametrize(
    ("requested", "on_gpu", "packed", "flash", "chosen"),
    [
        ("auto", False, True, True, None),
        ("auto", True, False, False, None),
        ("auto", True, True, False, "flex_attention"),
        ("auto", True, True, True, "flash_attention_2"),
        ("auto", True, False, True, "flash_attention_2"),
        ("sdpa", True, True, True, "sdpa"),
        ("eager", False, False, False, "eager"),
    ],
)
def test_attention_is_chosen_by_what_is_there(requested, on_gpu, packed, flash, chosen):
    """What is asked for is taken; else what keeps the documents of packs apart without a dense mask."""
    from modelwright.plugins.trainers.model.load import attention_for

    assert attention_for(requested, on_gpu=on_gpu, packed=packed, flash=flash) == chosen


@pytest.mark.parametrize(
    ("requested", "on_gpu"), [("flash_attention_2", False), ("flash_attention_2", True), ("flex_attention", False)]
)
def test_attention_that_is_not_available_is_one_line(requested, on_gpu, wording):
    """It names the key and what to set."""
    from modelwright.core.api import UsageError
    from modelwright.plugins.trainers.model.load import attention_for

    with pytest.raises(UsageError, match=requested) as caught:
        attention_for(requested, on_gpu=on_gpu, packed=True, flash=False)
    wording(caught.value)
