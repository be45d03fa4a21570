"""The chain on a real pretrained model, by examples/smollm2.toml: as it is, as an adapter, with all weights trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright import Client
from modelwright.core.cli import main

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("smollm2")]

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2.toml"
# The example's, in seconds instead of minutes.
SHORT = (
    "data.sources.0.limit=8",
    "train.batch_size=4",
    "evaluate.0.limit=4",
    "evaluate.0.generation.max_tokens=8",
)
QUESTION = "Tom has 7 apples and gets 5 more. How many apples does Tom have now?"


def _done(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code


@pytest.fixture(scope="module")
def trained_home(smollm2, tmp_path_factory):
    """A home in which the example has run, and its adapter is merged."""
    place = tmp_path_factory.mktemp("smollm2-home")
    sets = [f"--set={override}" for override in (f'model.base="{smollm2}"', *SHORT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELWRIGHT_HOME", str(place))
        _done("run", EXAMPLE, *sets)
        _done("models", "merge", "smollm2-lora", "--name", "smollm2-merged")
    return place


@pytest.fixture
def models(trained_home, monkeypatch, command):
    """The registered models by name, of that home."""
    monkeypatch.setenv("MODELWRIGHT_HOME", str(trained_home))
    return {model["name"]: model for model in json.loads(command("models", "list", "--json").stdout)}


def _logits(folder, adapter=None, *, merged=False):
    """Of the question, by transformers alone; with an adapter by peft, perhaps `merged` and rounded to bfloat16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    if merged:
        model = model.merge_and_unload().to(torch.bfloat16).to(torch.float32)
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(**prompt).logits


def test_the_base_is_registered_by_its_digest_and_graded_beside_what_was_trained(models, smollm2):
    """Both trained models name it as their base."""
    assert set(models) == {"smollm2-base", "smollm2-lora", "smollm2-full", "smollm2-merged"}
    for name in ("smollm2-base", "smollm2-lora", "smollm2-full"):
        assert models[name]["metrics"]["problems"]["math_accuracy"]["n"] == 4


def test_exports_give_transformers_the_same_logits(models, trained_home, command, smollm2, tmp_path):
    """Bit for bit; the merged model has those of peft's merge, but for a few weights that round the other way."""
    import torch

    for name in ("smollm2-base", "smollm2-full", "smollm2-lora", "smollm2-merged"):
        assert command("models", "export", "--no-verify", name, tmp_path / name).returncode == 0
    base = _logits(smollm2)
    assert torch.equal(_logits(tmp_path / "smollm2-base"), base)
    assert torch.equal(_logits(tmp_path / "smollm2-full"), _logits(trained_home / "runs/smollm2-full/train/model"))
    merged = _logits(tmp_path / "smollm2-merged")
    assert (merged - base).abs().max() > 1, "the training did something"
    by_peft = _logits(smollm2, tmp_path / "smollm2-lora", merged=True)
    assert (merged - by_peft).abs().max() < 0.02 * (merged - base).abs().max()


def test_a_served_model_answers_as_in_transformers(models, tmp_path, smollm2):
    """Greedy, of the same prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    serve = [sys.executable, "-m", "modelwright.core", "serve", "smollm2-base", "smollm2-lora", "--listen=127.0.0.1:0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            line = next(line for line in server.stdout if line.startswith("serving on "))
            with Client(line.removeprefix("serving on ").partition(";")[0].strip()) as client:
                ours = client.chat(QUESTION, model="smollm2-base", max_tokens=12).text
                tuned = client.chat(QUESTION, model="smollm2-lora", max_tokens=12).text
        finally:
            server.terminate()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert ours == tokenizer.decode(ids, skip_special_tokens=True)
    assert tuned
