"""Engine `torch` with an adapter on its base: the contract, and the same answers as the merged model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from modelwright.core.api.adapters import apply_adapter
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.testing.engine import EngineContract, request, run_all
from modelwright.plugins.engines import TorchOptions, modelwright_engines
from modelwright.plugins.engines.loading import load_model


@pytest.fixture
def start_adapter():
    """Load an adapter and its base with options; the engines are closed after the test."""
    from modelwright.plugins.engines.torch_engine import TorchEngine

    engines = []

    def make(folder, base, **options):
        engine = TorchEngine(TorchOptions(**{"device": "cpu", **options}))
        engines.append(engine)
        engine.load(folder, base=base)
        return engine

    yield make
    for engine in engines:
        engine.close()


class TestAdaptedEngine(EngineContract):
    """All that an engine does, it does with an adapter."""

    @pytest.fixture
    def spec(self):
        spec = next(iter(modelwright_engines()))
        assert spec.adapters
        return spec

    @pytest.fixture
    def engine(self, start_adapter, adapters, llama):
        return start_adapter(adapters.adapter(llama), llama)

    @pytest.fixture
    def prompt(self):
        return (70, 81, 92, 103, 60)

    @pytest.fixture
    def decode(self, llama):
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(llama / "tokenizer.json")).decode


def test_it_answers_as_the_merged_model_and_not_as_the_base(adapters, llama, start, start_adapter, tmp_path):
    """Token for token, in a batch of several."""
    folder = adapters.adapter(llama)
    merged = apply_adapter(AutoModelForCausalLM.from_pretrained(llama), folder).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    (tmp_path / "merged" / "tokenizer.json").write_bytes((llama / "tokenizer.json").read_bytes())
    answers = [
        [output.token_ids for output in run_all(engine, [request((70, 81, seed), max_tokens=16) for seed in range(4)])]
        for engine in (start_adapter(folder, llama), start(tmp_path / "merged"), start(llama))
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_added_tokens_are_known(adapters, start_adapter, dtype):
    """The base's embeddings grow; ids beyond them are refused still."""
    base = adapters.base(added=2)
    model = load_model(adapters.adapter(base), TorchOptions(device="cpu", dtype=dtype), base)
    rows = AutoModelForCausalLM.from_pretrained(base).config.vocab_size
    assert model.vocabulary == rows + 2
    engine = start_adapter(adapters.folder / "adapter", base, dtype=dtype)
    (answer,) = run_all(engine, [request((0, rows, rows + 1), max_tokens=4)])
    assert answer.finish in {"length", "stop"}


def test_nothing_is_trained_and_dropout_is_off(adapters, llama):
    """Dropout of the adapter's would make answers vary."""
    model = load_model(adapters.adapter(llama, dropout=0.5), TorchOptions(device="cpu"), llama).model
    tokens = torch.tensor([[70, 81, 92]])
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_without_its_base_is_refused(adapters, llama, start, wording):
    """Its own folder has no weights that could run."""
    with pytest.raises(ModelwrightError, match="adapter") as caught:
        start(adapters.adapter(llama))
    wording(caught.value)


def test_another_base_is_refused(adapters, llama, start_adapter):
    """As far as shapes can tell; digests tell the rest where it is registered."""
    with pytest.raises(ModelwrightError, match="this is an adapter for another base") as caught:
        start_adapter(adapters.adapter(llama), adapters.base())
    assert "\n" not in str(caught.value)
