"""Adapters in training: only they are trained, saved and exported, and what comes out is what is loaded and merged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from modelwright.core.api import AdapterSettings, ModelwrightError, UsageError
from modelwright.core.api.adapters import apply_adapter
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from modelwright.core.testing.adapter import LORA, AdapterContract
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import LocalOptions, modelwright_trainers
from modelwright.plugins.trainers.local import LocalTrainer
from modelwright.plugins.trainers.model.adapter import adapter_state, attach, export_adapter, load_adapter_state

TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])


class TestLocalAdapters(AdapterContract):
    """The contract."""

    tolerance = 0.0

    def trainer(self):
        """The trainer, by its descriptor."""
        return next(spec for spec in modelwright_trainers() if spec.name == "local").create()


@pytest.fixture
def job(tmp_path):
    """A job that trains an adapter of a base with weights; `changes` are other values of its attributes."""

    def make(name="one", recorder=None, **changes):
        base = tmp_path / "base"
        if not base.exists():
            write_model(base, weights=True)
        settings = TrainerContract().settings(max_steps=10)
        given = {"model": base, "settings": settings, "adapter": LORA} | changes
        return make_job(tmp_path / name, recorder or Recorder(), given.pop("settings"), **given)

    return make


@pytest.fixture
def train():
    def run(job, **options):
        return LocalTrainer(LocalOptions(**options)).train(job)

    return run


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def test_the_trainer_says_that_it_trains_adapters():
    """A run with [adapter] is refused where the trainer does not."""
    assert next(spec for spec in modelwright_trainers() if spec.name == "local").adapters


def test_the_base_is_not_touched(job, train):
    """A checkpoint holds the adapter's tensors only, and the base's folder stays byte for byte."""
    recorder = Recorder(stop_after=3)
    begun = job(recorder=recorder)
    before = (begun.model / "model.safetensors").read_bytes()
    assert not train(begun).finished
    (checkpoint,) = (begun.folder / "checkpoints").iterdir()
    assert not (checkpoint / "model.safetensors").exists()
    assert all("lora" in name for name in load_file(checkpoint / "adapter.safetensors"))
    assert (begun.model / "model.safetensors").read_bytes() == before


PROGRAM = """
import os, signal, sys
from pathlib import Path
from modelwright.core.api import AdapterSettings
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job
from modelwright.plugins.trainers import modelwright_trainers

def emit(kind, data):
    if kind == "step" and data["step"] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

settings = TrainerContract().settings(max_steps=10, checkpoint_every=3)
adapter = AdapterSettings(rank=4, alpha=8, dropout=0.2)
spec = next(spec for spec in modelwright_trainers() if spec.name == "local")
base = Path(sys.argv[1]).parent / "base"
spec.create().train(make_job(Path(sys.argv[1]), Recorder(), settings, model=base, adapter=adapter, emit=emit))
"""


@pytest.mark.long
def test_a_training_killed_twice_ends_with_the_same_bytes(job, train, tmp_path):
    """SIGKILL in the fifth step and in the eighth: the adapter is byte for byte that of a training that ran through."""
    settings = TrainerContract().settings(max_steps=10, checkpoint_every=3)
    adapter = evolve(LORA, dropout=0.2)
    straight = job("straight", adapter=adapter, settings=settings)
    train(straight)
    # Sums over another number of threads round in another way.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    for step in ("5", "8"):
        command = [sys.executable, "-c", PROGRAM, tmp_path / "killed", step]
        assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == -signal.SIGKILL
    recorder = Recorder()
    killed = job("killed", recorder, adapter=adapter, settings=settings)
    assert train(killed).finished
    assert recorder.of("resumed") == [{"step": 6}]
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        assert (straight.output / name).read_bytes() == (killed.output / name).read_bytes()


def test_dropout_changes_the_training(job, train):
    """It is not merely recorded."""
    outputs = []
    for dropout in (0.0, 0.3):
        done = job(f"dropout-{dropout}", adapter=evolve(LORA, dropout=dropout))
        train(done)
        outputs.append((done.output / ADAPTER_WEIGHTS).read_bytes())
    assert outputs[0] != outputs[1]


def test_gradient_checkpointing_changes_nothing(job, train):
    """With a frozen base the gradients reach the adapter all the same."""
    plain, recomputed = job("plain"), job("recomputed")
    train(plain)
    train(recomputed, gradient_checkpointing=True)
    one, other = (load_file(each.output / ADAPTER_WEIGHTS) for each in (plain, recomputed))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert any(value.abs().max() > 0 for name, value in other.items() if "lora_B" in name)


@pytest.mark.parametrize("vocabulary", [16, 18])
def test_it_is_trained_in_bfloat16(job, train, vocabulary):
    """The forward pass alone is in it; the adapter stays float32."""
    recorder = Recorder()
    settings = TrainerContract().settings(max_steps=20, precision="bfloat16")
    done = job(recorder=recorder, settings=settings, vocabulary=vocabulary)
    train(done)
    losses = [data["loss"] for data in recorder.of("step")]
    assert losses[-1] < losses[0]
    assert {value.dtype for value in load_file(done.output / ADAPTER_WEIGHTS).values()} == {torch.float32}


def test_packs_are_kept_apart(job, train, tmp_path):
    """The model that is called has its own signature still, so that packs are looked at and trained."""
    rows = counting_rows(12)
    tokens = write_token_folder(tmp_path / "packed", rows, packs=[[0, 1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11]])
    settings = TrainerContract().settings(max_steps=2, batch_size=2)
    assert train(job(tokens=tokens, settings=settings)).finished


def test_the_scale_of_rslora_is_over_the_root_of_the_rank(tmp_path):
    """Alpha / rank for LoRA, alpha / sqrt(rank) for rsLoRA."""
    scales = {}
    for kind in ("lora", "rslora"):
        model = load(write_model(tmp_path / kind, weights=True))
        attach(model, AdapterSettings(kind=kind, rank=16, alpha=32), seed=1)
        scales[kind] = model.model.layers[0].self_attn.q_proj.scaling["default"]
    assert scales == {"lora": 2.0, "rslora": 8.0}


def test_a_rank_above_the_layers_size_is_trained(job, train):
    """It is wasteful, and no error."""
    assert train(job(adapter=AdapterSettings(rank=64))).finished


def test_only_the_layers_that_are_named_get_an_adapter(tmp_path):
    """By the last part of the name, or the whole of it."""
    model = load(write_model(tmp_path / "base", weights=True))
    attach(model, AdapterSettings(targets=("q_proj", "model.layers.1.mlp.up_proj")), seed=1)
    trained = {name.partition(".lora")[0] for name in adapter_state(model)}
    assert trained == {*(f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)), "model.layers.1.mlp.up_proj"}


def test_all_linear_leaves_the_output_layer_alone(tmp_path):
    """Also where it has weights of its own; by name it gets an adapter."""
    config = json.loads((write_model(tmp_path / "base") / "config.json").read_text())
    for targets, expected in (("all-linear", False), (("q_proj", "lm_head"), True)):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**config | {"tie_word_embeddings": False}))
        attach(model, AdapterSettings(targets=targets), seed=1)
        assert any("lm_head" in name for name in adapter_state(model)) == expected


def test_transposed_layers_are_merged_as_they_are_computed(tmp_path):
    """GPT-2 keeps its matrices the other way round."""
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    adapter = attach(load(tmp_path / "base"), LORA, seed=1)
    _scramble(adapter)
    (tmp_path / "adapter").mkdir()
    export_adapter(adapter.get_base_model(), tmp_path / "adapter")
    adapted = apply_adapter(load(tmp_path / "base"), tmp_path / "adapter")
    before = logits(adapted)
    assert torch.allclose(logits(adapted.merge_and_unload()), before, atol=1e-5)


def test_an_adapter_is_exported_from_a_state_that_was_gathered(tmp_path):
    """As from the model itself, even if more is in the state."""
    model = load(write_model(tmp_path / "base", weights=True))
    attach(model, LORA, seed=1, new_tokens=[14, 15])
    for name, state in (("one", None), ("other", model.state_dict()), ("third", adapter_state(model))):
        (tmp_path / name).mkdir()
        export_adapter(model, tmp_path / name, state=state)
    contents = {(tmp_path / name / ADAPTER_WEIGHTS).read_bytes() for name in ("one", "other", "third")}
    assert len(contents) == 1


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (("q_proj", "query"), "query"),
        (("lm_head",), "lm_head"),  # tied to the embeddings
        ("q_pro", "q_pro"),
    ],
)
def test_a_target_that_is_not_there_is_one_line_with_those_that_are(job, train, targets, named, wording):
    """Before anything is trained."""
    with pytest.raises(UsageError) as caught:
        train(job(adapter=AdapterSettings(targets=targets)))
    assert f"{named!r}" in str(caught.value)
    wording(caught.value)


def _scramble(adapter):
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def test_new_rows_begin_as_the_mean_of_the_old(job, train, tmp_path):
    """With a rate of almost nothing they stay there."""
    write_model(tmp_path / "small", weights=True, vocabulary=14)
    settings = TrainerContract().settings(max_steps=1, learning_rate=1e-12)
    done = job(model=tmp_path / "small", vocabulary=16, adapter=None, settings=settings)
    train(done)
    weight = load(done.output).get_input_embeddings().weight
    assert torch.allclose(weight[14:], weight[:14].mean(dim=0).expand(2, -1), atol=1e-6)


def test_embeddings_that_are_larger_stay(job, train):
    """Many models have rows to spare."""
    done = job(vocabulary=9)
    train(done)
    assert json.loads((done.output / "config.json").read_text())["vocab_size"] == 16


# Loading


@pytest.fixture
def trained(job, train):
    done = job()
    train(done)
    return done


def test_an_adapter_for_another_base_is_refused(trained, tmp_path):
    """By the shapes and names of its tensors, in one line."""
    wide = LlamaConfig(**json.loads((trained.model / "config.json").read_text()) | {"hidden_size": 32})
    with pytest.raises(ModelwrightError, match="this is an adapter for another base") as caught:
        apply_adapter(AutoModelForCausalLM.from_config(wide), trained.output)
    assert "\n" not in str(caught.value)
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(ModelwrightError, match="this is an adapter for another base") as caught:
        apply_adapter(gpt2, trained.output)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_lacks_a_tensor_is_refused(trained):
    """Peft would leave it as it was drawn."""
    tensors = load_file(trained.output / ADAPTER_WEIGHTS)
    del tensors[min(tensors)]
    save_file(tensors, trained.output / ADAPTER_WEIGHTS)
    with pytest.raises(ModelwrightError, match=r"layers.0.mlp.down_proj.lora_A.weight .* the adapter has none"):
        apply_adapter(load(trained.model), trained.output)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda f: (f / ADAPTER_WEIGHTS).write_bytes(b"\xff" * 64), "cannot read adapter_model.safetensors"),
        (lambda f: (f / ADAPTER_WEIGHTS).unlink(), "cannot read adapter_model.safetensors"),
        (lambda f: (f / ADAPTER_CONFIG).write_text("{"), "adapter_config.json is not JSON"),
        (lambda f: (f / ADAPTER_CONFIG).write_text('{"peft_type": "IA3"}'), "does not describe a LoRA adapter"),
        (
            lambda f: (f / ADAPTER_CONFIG).write_text(
                json.dumps(json.loads((f / ADAPTER_CONFIG).read_text()) | {"use_dora": True})
            ),
            "says use_dora = True, which is not supported",
        ),
    ],
)
def test_a_damaged_adapter_is_one_line(trained, damage, line):
    """Which file, and what to do."""
    damage(trained.output)
    with pytest.raises(ModelwrightError) as caught:
        apply_adapter(load(trained.model), trained.output)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    """Its tensors are not copied where they fit by chance."""
    models = [load(write_model(tmp_path / f"{rank}", weights=True)) for rank in (2, 4)]
    for model, rank in zip(models, (2, 4), strict=True):
        attach(model, AdapterSettings(rank=rank), seed=1)
    with pytest.raises(ValueError, match="another adapter"):
        load_adapter_state(models[0], adapter_state(models[1]))
