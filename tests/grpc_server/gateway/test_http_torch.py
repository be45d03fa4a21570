"""The REST API with the built-in engine and a real, if tiny, model."""

import openai
import pytest

from modelwright import EngineSpec, NewModel
from modelwright.core.plugins import discover

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(shelf, serve_http):
    """A server of a model with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shelf.add("tiny")  # for its tokenizer's files
    folder = shelf.folder / "tiny-1"
    torch.manual_seed(1)
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
    shelf.registry.add(NewModel(name="tiny", fingerprint="tiny-weights"), folder)
    shelf.spec = discover().get(EngineSpec, "torch")
    return serve_http("tiny").openai()


def test_a_real_model_samples_repeats_streams_and_is_bounded(client):
    """Seeds repeat, alone and among several answers; a stream is the whole answer; logprobs are real; limits hold."""

    def sample(**options):
        settings = {"model": "tiny", "prompt": "hello", "max_tokens": 12, "temperature": 1.5, "top_p": 0.95}
        return client.completions.create(**settings, **options)

    alone = sample(seed=3).choices[0].text
    several = [choice.text for choice in sample(seed=3, n=3).choices]
    assert several[0] == alone
    assert len(set(several)) == 3
    assert several == [choice.text for choice in sample(seed=3, n=3).choices]
    assert several[1] not in {sample(seed=seed).choices[0].text for seed in (3, 4, 5)}
    assert "".join(chunk.choices[0].text for chunk in sample(seed=3, stream=True)) == alone
    assert (
        sample(seed=3, extra_body={"top_k": 1}).choices[0].text
        == sample(seed=4, extra_body={"top_k": 1}).choices[0].text
    )

    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=5, logprobs=True)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert all(token.logprob < 0 for token in tokens)
    greedy = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5, temperature=0)
    assert greedy.choices[0].message.content == answer.choices[0].message.content

    with pytest.raises(openai.BadRequestError, match="at most 59") as caught:
        client.completions.create(model="tiny", prompt="hello", max_tokens=60)
    assert caught.value.code == "context_length_exceeded"
