"""The server with the built-in engine and real, if tiny, models."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelwright import EngineSpec, NewModel
from modelwright.core.plugins import discover
from modelwright.grpc_server.client import ServerError


@pytest.fixture
def client(shelf, serve, connect):
    """A server of two models with random weights, `@assistant` pointing to the first."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for seed, name in enumerate(("first", "second")):
        shelf.add(name)  # for its tokenizer's files
        folder = shelf.folder / f"{name}-1"
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=257,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 64
        shelf.registry.add(NewModel(name=name, fingerprint=f"{name}-weights"), folder)
    shelf.point("assistant", "first", 2)
    shelf.spec = discover().get(EngineSpec, "torch")
    return connect(serve("first", "second"))


def test_a_real_model_is_served_sampled_switched_and_bounded(client):
    """Greedy and seeded answers repeat, alone or among many; other seeds and models give others; limits hold."""
    greedy = client.generate("hello", model="first", max_tokens=12)
    assert greedy.usage.prompt_tokens == 5
    assert greedy.usage.completion_tokens == len(greedy.token_ids) <= 12
    assert client.stream("hello", model="@assistant", max_tokens=12).generation().text == greedy.text

    def sample(seed, model="first"):
        return client.generate("hello", model=model, max_tokens=12, temperature=1.5, top_p=0.95, top_k=100, seed=seed)

    alone = [sample(seed).token_ids for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sample, [0, 1, 2, 3] * 3))
    assert [answer.token_ids for answer in together] == alone * 3
    assert len(set(alone)) == 4
    assert sample(0, "second").token_ids != alone[0]

    logprobs = client.generate("hello", model="first", max_tokens=4, logprobs=True).logprobs
    assert len(logprobs) == 4
    assert all(value < 0 for value in logprobs)

    switched = client.set_alias("assistant", "second")
    assert switched.address == "second@2"
    after = client.generate("hello", model="@assistant", max_tokens=12).token_ids
    assert after == client.generate("hello", model="second", max_tokens=12).token_ids != greedy.token_ids
    assert client.generate("hello", model="@assistant").served.digest == switched.digest

    with pytest.raises(ServerError, match="at most 59") as caught:
        client.generate("hello", model="first", max_tokens=60)
    assert caught.value.reason == "CONTEXT_EXCEEDED"
    assert client.generate("hello", model="first", max_tokens=59).finish in {"length", "stop"}
