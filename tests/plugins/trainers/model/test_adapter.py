"""Adapters in training: only they are trained, saved and exported, and what comes out is what is loaded and merged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import peft
import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file
from small_models import small
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from modelwright.core.api import AdapterSettings, ModelwrightError, TrainSettings, UsageError
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
from modelwright.plugins.trainers.model.targets import find_targets
from modelwright.plugins.trainers.optimizers import make_optimizer, set_learning_rate

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
    settings = TrainerContract().settings(max_steps=10, gradient_checkpointing="on")
    plain, recomputed = job("plain"), job("recomputed", settings=settings)
    train(plain)
    train(recomputed)
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
        ((r".*\.layers\.[7-9]\..*",), r".*\.layers\.[7-9]\..*"),
    ],
)
def test_a_target_that_is_not_there_is_one_line_with_those_that_are(job, train, targets, named, wording):
    """Before anything is trained."""
    with pytest.raises(UsageError) as caught:
        train(job(adapter=AdapterSettings(targets=targets)))
    assert f"{named!r}" in str(caught.value)
    wording(caught.value)


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "changes", "settings", "key"),
    [
        ("llama", {}, {"exclude": ("experts",)}, "exclude"),
        ("llama", {}, {"layers": (0, 7)}, "layers"),
        ("llama", {}, {"targets": "self_attn", "exclude": "self_attn"}, "targets"),
        ("llama", {}, {"modules_to_save": ("embed_token",)}, "modules_to_save"),
        ("gemma3_text", {}, {"modules_to_save": ("lm_head",)}, "modules_to_save"),
        ("gpt2", {}, {"modules_to_save": ("wte",)}, "modules_to_save"),
        ("gpt2", {}, {"init": "olora"}, "init"),
        ("llama", {}, {"init": "pissa", "rank": 64}, "rank"),
        ("mamba", {"state_size": 4, "attention": "eager"}, {}, "targets"),
        ("qwen3_moe", MOE, {"dora": True}, "dora"),
        ("qwen3_moe", MOE, {"dropout": 0.1}, "dropout"),
        ("qwen3_moe", MOE, {"init": "pissa"}, "init"),
        ("qwen3_moe", MOE, {"targets": ("gate_proj",)}, "targets"),
    ],
)
def test_settings_that_a_model_cannot_have_are_one_line(kind, changes, settings, key, wording):
    """The key to change, and to what."""
    with pytest.raises(UsageError) as caught:
        attach(small(kind, **changes), AdapterSettings(**settings), seed=1)
    assert str(caught.value).startswith(f"[adapter] {key}: ")
    wording(caught.value)


@pytest.mark.parametrize(
    ("settings", "layers", "parameters"),
    [
        ({"targets": "self_attn"}, {"k_proj", "o_proj", "q_proj", "v_proj"}, None),
        ({"targets": "experts"}, set(), ["experts.down_proj", "experts.gate_up_proj"]),
        ({"targets": r".*layers\.1\..*\.[qk]_proj"}, {f"model.layers.1.self_attn.{n}_proj" for n in "qk"}, None),
        (
            {"layers": (0,), "exclude": ("experts", "o_proj")},
            {f"model.layers.0.self_attn.{n}_proj" for n in "qkv"},
            None,
        ),
        ({"targets": "down_proj", "layers": (1,)}, set(), ["model.layers.1.mlp.experts.down_proj"]),
    ],
)
def test_targets_are_names_modules_or_regular_expressions(settings, layers, parameters):
    """Written for peft as short as they are not mistaken."""
    model = small("qwen3_moe", **MOE)
    chosen = find_targets(model, AdapterSettings(**settings)).for_peft(model)
    assert set(chosen["target_modules"]) == layers
    assert chosen["target_parameters"] == parameters


def test_the_layers_beside_the_experts_are_not_taken_for_them():
    """DeepSeek's shared expert has the names that the experts had in files of transformers 4."""
    settings = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "head_dim": 64}
    model = small("deepseek_v3", **MOE | settings, num_key_value_heads=2, kv_lora_rank=8, q_lora_rank=8)
    attach(model, AdapterSettings(rank=2, targets=("shared_experts",)), seed=1)
    assert {name.partition(".lora_")[0] for name in adapter_state(model)} == {
        f"model.layers.{block}.mlp.shared_experts.{name}_proj" for block in range(2) for name in ("gate", "up", "down")
    }


@pytest.mark.parametrize("settings", [{"init": "pissa"}, {"dora": True}])
def test_settings_that_need_whole_weights_are_refused_where_they_are_split(settings, wording):
    """At stage 3 of ZeRO, which marks the parameters that it has split."""
    model = small("llama")
    model.model.layers[0].self_attn.q_proj.weight.ds_id = 7
    with pytest.raises(UsageError) as caught:
        attach(model, AdapterSettings(**settings), seed=1)
    wording(caught.value)


def test_b_is_trained_at_its_own_rate(tmp_path):
    """LoRA+: a multiple of A's; nothing else is."""
    model = load(write_model(tmp_path / "base", weights=True))
    attach(model, AdapterSettings(rank=2, lora_plus=16, modules_to_save=("norm",)), seed=1)
    optimizer = make_optimizer(model, TrainSettings(max_steps=1, weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert {rates[id(each)] for name, each in model.named_parameters() if ".lora_B." in name} == {8.0}
    others = [name for name, each in model.named_parameters() if each.requires_grad and ".lora_B." not in name]
    assert {rates[id(model.get_parameter(name))] for name in others} == {0.5}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1, 0.0}


def test_a_start_from_the_weights_is_saved_as_plain_lora(job, train):
    """Of twice the rank and the same scale, for the base as it is."""
    done = job(adapter=evolve(LORA, init="pissa", kind="rslora"))
    train(done)
    config = json.loads((done.output / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["init_lora_weights"]) == (2 * LORA.rank, True)
    assert config["lora_alpha"] / config["r"] ** 0.5 == pytest.approx(LORA.alpha / LORA.rank**0.5)


def test_the_event_says_how_much_of_what_is_trained(job, train, tmp_path):
    """Also what has no adapter, by name."""
    recorder = Recorder()
    small("qwen3_moe", **MOE).save_pretrained(tmp_path / "moe")
    train(job(recorder=recorder, model=tmp_path / "moe", adapter=evolve(LORA, targets="experts")))
    (started,) = recorder.of("started")
    assert started["adapter_parameters"].keys() == {"experts.gate_up_proj", "experts.down_proj"}
    assert sum(started["adapter_parameters"].values()) == started["trainable"]
    assert started["adapted"] == 2 * 4 * (32 * 32 + 16 * 32)
    assert {"q_proj", "embed_tokens", "gate"} <= started["unadapted"].keys()
    assert started["adapted"] + sum(started["unadapted"].values()) == started["parameters"] - started["trainable"]


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
                json.dumps(json.loads((f / ADAPTER_CONFIG).read_text()) | {"alora_invocation_tokens": [1]})
            ),
            "says alora_invocation_tokens = [1], which is not supported",
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


def _configured(folder, **settings):
    """Change an adapter's config."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text()) | settings
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_version": "9.1.0", "use_telepathy": True},
        {"init_lora_weights": "pissa"},
        {"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq"},
    ],
)
def test_an_adapter_that_cannot_be_computed_is_one_line(trained, settings, wording):
    """By a setting of a newer peft, or since its base is not the one that it was trained on."""
    _configured(trained.output, **settings)
    with pytest.raises(ModelwrightError) as caught:
        apply_adapter(load(trained.model), trained.output)
    wording(str(caught.value).replace(str(trained.output), "FOLDER").replace(peft.__version__, "VERSION"))


def test_settings_of_a_newer_peft_that_are_off_change_nothing(trained):
    """It writes all that it knows."""
    before = logits(apply_adapter(load(trained.model), trained.output))
    _configured(trained.output, peft_version="9.1.0", use_telepathy=False, telepathy_config=None)
    assert torch.equal(logits(apply_adapter(load(trained.model), trained.output)), before)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"target_modules": r".*\.[qv]_proj", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
        (
            "llama",
            {
                "target_modules": "all-linear",
                "init_lora_weights": "gaussian",
                "exclude_modules": ["down_proj"],
                "bias": "all",
            },
        ),
        (
            "gemma3_text",
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        ),
        ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
        ("qwen3_moe", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
    ],
)
def test_what_peft_writes_is_read(kind, settings, tmp_path):
    """Adapters that others trained: the logits are those of peft."""
    base = small(kind, **MOE)
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    _scramble(model)
    model.save_pretrained(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    expected = logits(peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter"))
    applied = apply_adapter(load(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(applied), expected)
    assert (expected - logits(load(tmp_path / "base"))).abs().max() > 0.01
    assert torch.allclose(logits(applied.merge_and_unload()), expected, atol=1e-5)


def test_experts_of_files_of_transformers_4_are_read(tmp_path):
    """Each expert has tensors of its own there; peft puts them together."""
    base = small("qwen3_moe", **MOE)
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["gate_proj", "up_proj", "down_proj"])
    config.inference_mode = True
    config.save_pretrained(tmp_path / "adapter")
    base.config.save_pretrained(tmp_path / "adapter")
    generator = torch.Generator().manual_seed(3)
    sizes = {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}
    tensors = {}
    for name, (inputs, outputs) in sizes.items():
        for place in (f"layers.{block}.mlp.experts.{expert}.{name}" for block in range(2) for expert in range(4)):
            path = f"base_model.model.model.{place}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(2, inputs, generator=generator)
            tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator) * 0.1
    save_file(tensors, tmp_path / "adapter" / ADAPTER_WEIGHTS)
    expected = logits(peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter"))
    assert torch.equal(logits(apply_adapter(load(tmp_path / "base"), tmp_path / "adapter")), expected)
    assert (expected - logits(load(tmp_path / "base"))).abs().max() > 0.01


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    """Its tensors are not copied where they fit by chance."""
    models = [load(write_model(tmp_path / f"{rank}", weights=True)) for rank in (2, 4)]
    for model, rank in zip(models, (2, 4), strict=True):
        attach(model, AdapterSettings(rank=rank), seed=1)
    with pytest.raises(ValueError, match="another adapter"):
        load_adapter_state(models[0], adapter_state(models[1]))
