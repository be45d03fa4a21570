"""An adapter of each family of models: trained, registered, served, merged, exported, read by plain transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from small_models import small
from transformers import AutoModelForCausalLM

from modelwright.core.api import AdapterSettings, EngineSpec
from modelwright.core.api.adapters import apply_adapter
from modelwright.core.chat.renderer import Renderer
from modelwright.core.models.adapters import adapter_base
from modelwright.core.models.merge import merge
from modelwright.core.plugins import discover
from modelwright.core.registry.export import export_model
from modelwright.core.testing.engine import request, run_all
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job
from modelwright.grpc_server.client import Client
from modelwright.plugins.engines import TorchOptions
from modelwright.plugins.engines.torch_engine import TorchEngine
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.local import LocalTrainer

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": {},
    "qwen3_moe": EXPERTS,
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "mixtral": EXPERTS,
    "olmoe": EXPERTS,
    "gpt_oss": EXPERTS,
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "head_dim": 8,
        "num_key_value_heads": 2,
    },
    "qwen3_next": {
        **EXPERTS,
        "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 1,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
EMBEDDINGS = {"embed_tokens", "lm_head", "wte", "wpe"}
QUICK = ("llama", "qwen3_moe")


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.long) for family in FAMILIES]
)
def test_an_adapter_computes_the_same_everywhere(adapters, family):
    """The logits of the trained adapter in peft, in the engine, merged, and exported; every expert has its share."""
    attention = "eager" if family == "gpt_oss" else "sdpa"
    folder = adapters.base()
    small(family, attention, vocab_size=80, **FAMILIES[family]).save_pretrained(folder)
    base = adapters.add(folder)
    recorder = Recorder()
    adapter = _trained(adapters, folder, base, recorder, AdapterSettings(rank=4, alpha=8, lora_plus=4))

    (started,) = recorder.of("started")
    # Norms, routers and convolutions.
    small_parts = {name: count for name, count in started["unadapted"].items() if name not in EMBEDDINGS}
    assert sum(small_parts.values()) < started["adapted"] / 20
    assert started["trainable"] == sum(started["adapter_parameters"].values())
    assert ("experts.gate_up_proj" in started["adapter_parameters"]) == ("num_experts_per_tok" in FAMILIES[family])

    place = adapters.registry.folder(adapter)
    alone = _logits(_load(folder))
    applied = _logits(apply_adapter(_load(folder), place))
    assert (applied - alone).abs().max() > 0.01
    export_model(adapters.registry, adapter, adapters.folder / "exported-adapter", lambda _: None)
    exported = peft.PeftModel.from_pretrained(_load(folder), adapters.folder / "exported-adapter")
    assert torch.equal(_logits(exported), applied)

    merged = merge(adapters.registry, adapter)
    assert merged.compared is not None
    assert merged.compared.difference < merged.compared.allowed < merged.compared.moved
    export_model(adapters.registry, merged.version, adapters.folder / "exported", lambda _: None)
    plain = _load(adapters.folder / "exported")
    assert torch.allclose(_logits(plain), applied, rtol=0, atol=1e-4)

    there = adapter_base(adapters.registry, adapter)
    assert _answers(place, there.folder) == _answers(adapters.folder / "exported") == _greedy(plain, PROMPTS)
    if family in QUICK:
        _check_served(adapters.registry, Renderer.from_folder(place), plain)


def _trained(adapters, folder, base, recorder, settings):
    """Train an adapter for a few steps, and register it as a run does."""
    job = make_job(
        adapters.folder / "job",
        recorder,
        TrainerContract().settings(max_steps=3, learning_rate=0.03),
        model=folder,
        adapter=settings,
    )
    assert LocalTrainer(LocalOptions()).train(job).finished
    Renderer.from_folder(folder).save(job.output)
    return adapters.add(job.output, "adapter", source="base", base=base.digest, parent=base.address)


def _load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def _logits(model):
    return model.eval()(torch.arange(24).view(2, 12)).logits


PROMPTS = ((70, 31, 2, 13), (4, 5, 6))


def _answers(folder, base=None):
    """The engine's greedy answers."""
    engine = TorchEngine(TorchOptions(device="cpu"))
    try:
        engine.load(folder, base=base)
        return [output.token_ids for output in run_all(engine, [request(each, max_tokens=4) for each in PROMPTS])]
    finally:
        engine.close()


def _check_served(registry, renderer, plain):
    """Base and adapter, and the merged model, answer over a real channel as plain transformers does."""
    shelf = SimpleNamespace(registry=registry, spec=discover().get(EngineSpec, "torch"))
    running = load_server_tests().Running(shelf, ["adapter", "adapter-merged"])
    try:
        with Client(running.target, timeout=20) as client:
            for text in ("What is 1", "It is"):
                (expected,) = _greedy(plain, [renderer.encode(text)])
                for name in ("adapter", "adapter-merged"):
                    answer = client.generate(text, model=name, max_tokens=4)
                    assert answer.token_ids == expected[: len(answer.token_ids)]
                    assert (answer.finish, len(answer.token_ids)) == ("length", 4) or answer.finish == "stop"
    finally:
        running.stop()


def load_server_tests():
    """The helpers of the server's tests."""
    path = Path(__file__).parents[2] / "grpc_server" / "conftest.py"
    spec = importlib.util.spec_from_file_location("serving", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def _greedy(model, prompts):
    """The same from the logits of plain transformers."""
    answers = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(4):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        answers.append(tuple(tokens[len(prompt) :]))
    return answers
