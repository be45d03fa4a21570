"""The contract of trainers that train adapters, beside the one of all trainers, as a test-suite to subclass.

from modelwright.core.testing.adapter import AdapterContract

class TestMyAdapters(AdapterContract):
def trainer(self):
return MyTrainer(MyOptions())
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from modelwright.core.api import AdapterSettings, Job, ModelwrightError, Trained, Trainer, TrainSettings
from modelwright.core.api.adapters import apply_adapter, embedding_rows
from modelwright.core.api.files import read_json
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from modelwright.core.testing.trainer import (
    VOCABULARY,
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    write_model,
    write_token_folder,
)

LORA = AdapterSettings(rank=4, alpha=8)
# Adapters that differ in what is trained, saved or loaded.
VARIANTS = {
    "lora": LORA,
    "rslora": evolve(LORA, kind="rslora"),
    "dora": evolve(LORA, dora=True),
    "pissa": evolve(LORA, init="pissa"),
    "olora": evolve(LORA, init="olora", kind="rslora"),
    "lora-plus": evolve(LORA, lora_plus=8),
    "whole-norm": evolve(LORA, layers=(1,), exclude="mlp", modules_to_save=("norm",)),
}


class AdapterContract:
    """What every trainer does whose spec says `adapters`; subclass it and give `trainer`.

    Attributes:
        tolerance: how far weights may be apart that ought to be the same, absolute; a GPU's sums have no fixed order.
    """

    tolerance: float = 1e-5

    def trainer(self) -> Trainer:
        """The trainer under test, with the options that it needs."""
        raise NotImplementedError

    def settings(self, **changes: Any) -> TrainSettings:
        """The `[train]` table that the tests use; override it to add options."""
        return TrainerContract().settings(**changes)

    def train(self, job: Job) -> Trained:
        """Run a job; override it for a trainer that needs processes of its own."""
        return self.trainer().train(job)

    def job(self, folder: Path, recorder: Recorder | None = None, **changes: Any) -> Job:
        """A job that trains an adapter of a tiny base; `changes` are other values of its attributes."""
        base = folder.parent / "base"
        if not base.exists():
            write_model(base, weights=True)
        given: dict[str, Any] = {"model": base, "settings": self.settings(max_steps=10), "adapter": LORA} | changes
        return make_job(folder, recorder or Recorder(), given.pop("settings"), **given)

    def same(self, one: Path, other: Path) -> bool:
        """Whether two folders hold the same adapter, within `tolerance`."""
        import torch

        left, right = read_adapter(one), read_adapter(other)
        return left.keys() == right.keys() and all(
            torch.allclose(left[name], right[name], rtol=0, atol=self.tolerance) for name in left
        )

    def test_it_learns_and_leaves_an_adapter_alone(self, tmp_path: Path) -> None:
        """What a base knows is turned to something else; the output is peft's two files and the model's config."""
        recorder = Recorder()
        counting = self.job(tmp_path / "counting", adapter=None, settings=self.settings(max_steps=30))
        self.train(counting)
        last = VOCABULARY - 1
        backwards = [(name, [last - token for token in ids], trained) for name, ids, trained in counting_rows(24)]
        tokens = write_token_folder(tmp_path / "backwards", backwards)
        settings = self.settings(max_steps=60)
        job = self.job(tmp_path / "one", recorder, model=counting.output, tokens=tokens, settings=settings)
        self.train(job)
        losses = [data["loss"] for data in recorder.of("step")]
        assert losses[-1] < losses[0] / 2
        assert {path.name for path in job.output.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json"}
        trained = read_adapter(job.output)
        assert all("lora_A" in name or "lora_B" in name for name in trained)
        started = recorder.of("started")[0]
        assert started["trainable"] == sum(value.numel() for value in trained.values())
        assert started["parameters"] > 2 * started["trainable"]

    def test_it_begins_as_its_base(self, tmp_path: Path) -> None:
        """Before the first step the adapter changes nothing: the first loss is that of training the whole model."""
        losses = []
        for name, adapter in (("none", None), ("lora", LORA), ("pissa", VARIANTS["pissa"])):
            recorder = Recorder()
            job = self.job(tmp_path / name, recorder, adapter=adapter, settings=self.settings(max_steps=1))
            self.train(job)
            losses.append(recorder.of("step")[0]["loss"])
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)

    def test_the_base_is_not_touched(self, tmp_path: Path) -> None:
        """Its folder stays byte for byte."""
        job = self.job(tmp_path / "one")
        before = (job.model / "model.safetensors").read_bytes()
        self.train(job)
        assert (job.model / "model.safetensors").read_bytes() == before

    @pytest.mark.parametrize("variant", ["rslora", "dora", "pissa", "lora-plus"])
    def test_it_resumes_where_it_stopped_with_dropout_too(self, tmp_path: Path, variant: str) -> None:
        """Stopped twice and resumed: the adapter of a training that ran through."""
        adapter = evolve(VARIANTS[variant], dropout=0.2)
        straight = self.job(tmp_path / "straight", adapter=adapter)
        self.train(straight)
        for stop_after in (3, 7):
            stopped = self.job(tmp_path / "stopped", Recorder(stop_after=stop_after), adapter=adapter)
            assert not self.train(stopped).finished
        resumed = self.job(tmp_path / "stopped", adapter=adapter)
        assert self.train(resumed).finished
        assert self.same(straight.output, resumed.output)
        assert (straight.output / ADAPTER_CONFIG).read_bytes() == (resumed.output / ADAPTER_CONFIG).read_bytes()

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_trained_loaded_and_merged_say_the_same(self, tmp_path: Path, variant: str) -> None:
        """The exported adapter on its base, peft's own reading of it, and the merged weights: the same logits."""
        import peft
        import torch

        job = self.job(tmp_path / variant, adapter=VARIANTS[variant], settings=self.settings(max_steps=20))
        self.train(job)
        adapted = apply_adapter(_load(job.model), job.output)
        with_adapter = _logits(adapted)
        assert (with_adapter - _logits(_load(job.model))).abs().max() > 0.1
        assert torch.equal(with_adapter, _logits(peft.PeftModel.from_pretrained(_load(job.model), job.output)))
        assert torch.allclose(_logits(adapted.merge_and_unload()), with_adapter, atol=1e-5)

    @pytest.mark.parametrize("adapter", [LORA, None])
    @pytest.mark.parametrize("tied", [True, False])
    def test_added_tokens_are_trained_and_come_along(
        self, tmp_path: Path, tied: bool, adapter: AdapterSettings | None
    ) -> None:
        """A tokenizer with more tokens than the base: embeddings grow, the new rows learn, and are in what is saved."""
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = read_json(write_model(tmp_path / "config") / "config.json")
        torch.manual_seed(2)
        small = LlamaConfig(**config | {"vocab_size": VOCABULARY - 2, "tie_word_embeddings": tied})
        AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
        job = self.job(tmp_path / "one", model=tmp_path / "small", vocabulary=VOCABULARY, adapter=adapter)
        assert self.train(job).finished
        base = _load(job.model)
        old = base.get_input_embeddings().weight.detach().clone()
        model = apply_adapter(base, job.output).get_base_model() if adapter else _load(job.output)
        assert model.config.vocab_size == embedding_rows(model) == VOCABULARY
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            new = layer.weight[VOCABULARY - 2 :].detach()
            assert not torch.allclose(new, old.mean(dim=0).expand_as(new))
            assert not torch.allclose(new[0], new[1])
        if adapter:
            assert torch.equal(model.get_input_embeddings().weight[: VOCABULARY - 2], old)

    def test_the_path_of_its_base_is_not_saved(self, tmp_path: Path) -> None:
        """The adapter does not contain paths of this disk; a base of the hub is named, so that peft finds it."""
        for name, hub, named in (("one", None, (None, None)), ("hub", "org/name@0123abc", ("org/name", "0123abc"))):
            job = self.job(tmp_path / name, hub=hub, settings=self.settings(max_steps=1))
            self.train(job)
            config = read_json(job.output / ADAPTER_CONFIG)
            assert (config["base_model_name_or_path"], config["revision"]) == named
            assert not any(str(tmp_path) in path.read_text() for path in job.output.glob("*.json"))

    def test_a_target_that_is_not_there_is_one_line_with_those_that_are(self, tmp_path: Path) -> None:
        """Before anything is trained."""
        with pytest.raises(ModelwrightError) as caught:
            self.train(self.job(tmp_path / "one", adapter=evolve(LORA, targets=("q_proj", "query"))))
        (line,) = str(caught.value).splitlines()
        assert "[adapter] targets" in line
        for name in (
            "query",
            "down_proj",
            "gate_proj",
            "k_proj",
            "o_proj",
            "q_proj",
            "up_proj",
            "v_proj",
            "all-linear",
        ):
            assert name in line


def read_adapter(folder: Path) -> dict[str, Any]:
    """The tensors of an adapter by name."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / ADAPTER_WEIGHTS)
    return tensors


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def _logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])).logits
