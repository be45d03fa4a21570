"""Adapters in a server: loaded with their base, asked like any model."""

from __future__ import annotations

import asyncio

import pytest

from modelwright import EngineSpec
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.generation import GenerationRequest, Sampling
from modelwright.core.models.merge import merge
from modelwright.core.plugins import discover
from modelwright.grpc_server.models.loaded import load_model

TORCH = discover().get(EngineSpec, "torch")


async def answer(model):
    request = GenerationRequest(id="one", prompt=(1, 2, 3), sampling=Sampling(max_tokens=12))
    return [token async for delta in model.engine.submit(request) for token in delta.token_ids]


def test_an_adapter_answers_as_its_merged_model_does(adapters):
    """By the same prompts, in the same context."""
    base, adapter = adapters.pair()
    merged = merge(adapters.registry, adapter).version
    loaded = [load_model(adapters.registry, version, TORCH) for version in (adapter, merged, base)]
    try:
        one, same, other = (asyncio.run(answer(model)) for model in loaded)
        assert one == same != other
        assert len({model.renderer.fingerprint for model in loaded}) == 1
        assert {model.context_length for model in loaded} == {128}
    finally:
        for model in loaded:
            model.close()


def test_an_adapter_without_its_base_is_not_loaded(adapters, tmp_path):
    """The line says which base, and what to do."""
    _, adapter = adapters.pair()
    adapters.registry.delete("base", 1)
    with pytest.raises(ModelwrightError, match=r"adapter adapter@1 is not in this registry: export base@1 \(digest"):
        load_model(adapters.registry, adapter, TORCH)


def test_an_engine_of_whole_models_refuses_it(adapters, shelf):
    """The error says what to do instead."""
    _, adapter = adapters.pair()
    with pytest.raises(ModelwrightError, match="cannot run adapters: merge"):
        load_model(adapters.registry, adapter, shelf.spec)
