"""Memory is predicted before any weights are read, and at ZeRO's stage 3 nobody holds all of them."""

import json
import subprocess
import sys

import pytest
import torch
from attrs import evolve
from transformers import AutoModelForCausalLM, LlamaConfig

from modelwright.core.api import (
    AdapterSettings,
    MachineMemory,
    MemorySettings,
    ModelShape,
    ModelwrightError,
    reading_memory,
    training_memory,
)
from modelwright.core.testing.trainer import VOCABULARY, Recorder, TrainerContract, make_job, write_model
from modelwright.plugins.trainers import modelwright_trainers
from modelwright.plugins.trainers.memory import check_memory, model_shape, planned_shapes
from modelwright.plugins.trainers.model.adapter import adapt, attach
from modelwright.plugins.trainers.model.load import load_model, skeleton

LOCAL, *_ = modelwright_trainers()


CPU = torch.device("cpu")


def size(parameters, trainable=None):
    """A model of so many weights, trained whole unless it is said how many are."""
    return ModelShape(parameters=parameters, trainable=parameters if trainable is None else trainable)


@pytest.mark.parametrize(
    ("trainable", "how"),
    [
        (None, MemorySettings()),
        (1, MemorySettings()),
        (1, MemorySettings(frozen="nf4", stage=3)),
        (None, MemorySettings(stage=3, offload="all")),
    ],
    ids=["all weights", "adapter", "quantized at stage 3", "all offloaded"],
)
def test_memory_that_cannot_suffice_is_an_error_before_anything_is_made(trainable, how, monkeypatch, wording):
    """How much is needed, how much there is, and what needs less: nothing that is set already."""
    little = MachineMemory(machine=10**9, usable=10**9, free=10**9)
    monkeypatch.setattr("modelwright.plugins.trainers.memory.machine_memory", lambda: little)
    with pytest.raises(ModelwrightError) as caught:
        check_memory(size(10**10, trainable), how, CPU, on_machine=1)
    wording(str(caught.value))
    check_memory(size(1000), how, CPU, on_machine=4)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_model_that_each_process_reads_whole_must_fit_beside_the_others(stage, monkeypatch, wording):
    """Eight processes read it eight times, unless ZeRO-3 shares it out as it is read and its embeddings do not grow."""
    there = MachineMemory(machine=10**11, usable=10**11, free=10**11)
    monkeypatch.setattr("modelwright.plugins.trainers.memory.machine_memory", lambda: there)
    # What it holds does fit: four bits for each weight.
    how = MemorySettings(stage=stage, ranks=64, frozen="int4")
    shape = ModelShape(parameters=10**10, trainable=1, linear=10**10 - 1)
    reading = reading_memory(shape.parameters, stage=stage, grows=True)
    check_memory(shape, how, CPU, on_machine=1, reading=reading)
    with pytest.raises(ModelwrightError) as caught:
        check_memory(shape, how, CPU, on_machine=8, reading=reading)
    wording(str(caught.value))
    check_memory(shape, how, CPU, on_machine=8, reading=reading_memory(shape.parameters, stage=3))


def test_the_memory_of_a_model_is_known_before_its_weights_are_read(tmp_path):
    """Its configuration says it, with the adapter and the new tokens of the job."""
    job = make_job(tmp_path, Recorder(), TrainerContract().settings())
    assert model_shape(skeleton(job), "cpu") == model_shape(load_model(job), "cpu")
    wanted = evolve(job, adapter=AdapterSettings(rank=4), vocabulary=VOCABULARY + 3)
    models = [skeleton(wanted), load_model(wanted)]
    for model in models:
        adapt(model, wanted)
    assert model_shape(models[0], "cpu") == model_shape(models[1], "cpu")
    assert {parameter.device.type for parameter in models[0].parameters()} == {"meta"}


COMPOSITE = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    | {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8}
    | {"num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 4},
    "mm_tokens_per_image": 4,
}
EXPERTS = {
    "model_type": "qwen2_moe", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}


@pytest.mark.parametrize(
    ("config", "layers", "attention", "inner"),
    [(COMPOSITE, 3, 2 * (4 + 2) * 8, 32), (EXPERTS, 2, 4 * 16, 2 * 24 + 40), (GPT2, 2, 4 * 16, 64)],
    ids=["composite", "experts", "gpt2"],
)
def test_the_sizes_come_from_the_config_alone(tmp_path, config, layers, attention, inner):
    """Of a text model inside another, of the experts that a token is sent to, and under GPT-2's own names."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = planned_shapes(str(tmp_path), adapter=None, vocabulary=70, trust_remote_code=False)
    full, adapter = ModelShape(**found["full"]), ModelShape(**found["adapter"])
    assert (full.layers, full.width, full.attention, full.inner) == (layers, 16, attention, inner)
    assert (full.vocabulary, full.head, full.trainable) == (70, 70 * 16, full.parameters)
    assert full.matrices >= full.linear
    assert full.parameters > full.matrices + full.head
    assert (full.adapted, adapter.adapted, adapter.head_trained) == (False, True, False)
    assert adapter.parameters == full.parameters + adapter.trainable


def kept(model, tokens, how):
    """Bytes that the blocks of a model keep for the backward pass, without its own weights."""
    own, storages = {each.untyped_storage().data_ptr() for each in model.parameters()}, {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    autocast = how.precision == "bfloat16" and how.trained == "float32"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


@pytest.mark.parametrize(
    ("adapter", "trained", "precision"),
    [
        (False, "float32", "float32"),
        (False, "float32", "bfloat16"),
        (False, "bfloat16", "bfloat16"),
        (True, "float32", "float32"),
        (True, "float32", "bfloat16"),
    ],
)
def test_the_formula_counts_what_a_model_keeps_for_the_backward_pass(tmp_path, adapter, trained, precision):
    """Of two blocks more, so that neither embeddings nor the last norm count; with what autocast copies."""
    how = MemorySettings(trained=trained, frozen=trained, precision=precision, tokens=512)
    found = []
    for layers in (1, 3):
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, trained))
        if adapter:
            attach(model, AdapterSettings(rank=4), seed=0)
        found.append((kept(model, 512, how), training_memory(model_shape(model, "cpu"), how).activations))
    (little, formula), (more, longer) = found
    assert longer - formula == pytest.approx(more - little, rel=0.05)


def test_a_model_that_memory_does_not_suffice_for_is_refused_before_it_is_read(tmp_path):
    """Nothing of it is made; the weights, which are not even there, are not missed."""
    job = make_job(tmp_path, Recorder(), TrainerContract().settings())
    write_model(job.model)
    config = json.loads((job.model / "config.json").read_text())
    config |= {"hidden_size": 1 << 17, "intermediate_size": 1 << 19, "num_attention_heads": 1, "num_key_value_heads": 1}
    (job.model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelwrightError, match=r"not enough memory on this machine: weights, gradients and optimizer"):
        LOCAL.create().train(job)


_LOOK = """
import sys
from pathlib import Path
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job
from modelwright.plugins.trainers import DeepSpeedOptions
from modelwright.plugins.trainers.deepspeed.trainer import Processes
from modelwright.plugins.trainers.model.load import load_model

job = make_job(Path(sys.argv[1]), Recorder(), TrainerContract().settings())
setup = Processes(job, DeepSpeedOptions(zero_stage=3))
model = load_model(job, sharing=setup.sharing)
whole = sum(parameter.ds_numel for parameter in model.parameters())
mine = sum(parameter.ds_tensor.numel() for parameter in model.parameters())
here = sum(parameter.numel() for parameter in model.parameters())
Path(sys.argv[1], f"{setup.ranks.rank}.seen").write_text(f"{whole} {mine} {here}")
setup.ranks.wait()
"""


@pytest.mark.long
def test_at_stage_3_each_process_keeps_its_share_of_what_is_read(tmp_path):
    """Half of the numbers, of two processes; the parameters themselves are empty until they are computed with."""
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    write_model(tmp_path / "base", weights=True)
    make_job(tmp_path, Recorder(), TrainerContract().settings())
    (tmp_path / "look.py").write_text(_LOOK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, str(tmp_path / "look.py"), str(tmp_path)], check=True, timeout=120)
    for rank in (0, 1):
        whole, mine, here = map(int, (tmp_path / f"{rank}.seen").read_text().split())
        assert (
            whole
            == model_shape(load_model(make_job(tmp_path, Recorder(), TrainerContract().settings())), "cpu").parameters
        )
        assert mine == pytest.approx(whole / 2, rel=0.01)
        assert here == 0
