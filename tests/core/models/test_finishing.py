"""A finished model has the size of its base, and stops where its template ends a turn."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from gguf_models import folder_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelwright.core.api.errors import UsageError
from modelwright.core.chat.renderer import Renderer
from modelwright.core.models.finishing import (
    complete_generation_config,
    missing_stops,
    round_like,
    round_weights,
    weights_dtype,
)


def dtypes(folder):
    return {name: tensor.dtype for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_each_weight_gets_the_dtype_that_it_has_in_the_base(tmp_path):
    """A router that is kept in float32 stays so; a tensor that the base has not gets the usual one."""
    trained, base = folder_of(tmp_path / "trained"), folder_of(tmp_path / "base", dtype=torch.bfloat16)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    before = load_file(trained / "model.safetensors")
    assert round_like(trained, base) == "bfloat16"
    assert {name for name, dtype in dtypes(trained).items() if dtype == torch.float32} == {"model.norm.weight"}
    assert json.loads((trained / "config.json").read_text())["dtype"] == "bfloat16"
    after = load_file(trained / "model.safetensors")
    assert all(torch.equal(after[name], before[name].to(after[name].dtype)) for name in before)
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert model.dtype == torch.bfloat16


def test_shards_are_rounded_one_by_one_and_their_index_follows(tmp_path):
    """The total size in the index is that of the tensors as they are now."""
    folder = folder_of(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    round_weights(tmp_path / "shards", "float16")
    assert set(dtypes(tmp_path / "shards").values()) == {torch.float16}
    after = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert after["metadata"]["total_size"] == index["metadata"]["total_size"] // 2
    assert after["weight_map"] == index["weight_map"]
    assert weights_dtype(tmp_path / "shards") == "float16"


def test_the_same_dtype_changes_no_byte(tmp_path):
    """What is registered in float32 has the digest that it had."""
    folder, base = folder_of(tmp_path / "a"), folder_of(tmp_path / "b")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert round_like(folder, base) == "float32"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_weight_beyond_float16_is_refused(tmp_path, wording):
    """It would become infinite, and every logit NaN."""
    folder = folder_of(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError) as caught:
        round_weights(folder, "float16")
    wording(caught.value)
    round_weights(folder, "bfloat16")


def speaking(folder, token):
    """Make a model that answers with one token only, to any question."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    tensors["lm_head.weight"][token] = 1.0
    tensors["model.norm.weight"].fill_(1.0)
    hidden = [name for name in tensors if "down_proj" in name or "o_proj" in name]
    for name in hidden:
        tensors[name].zero_()
    tensors["model.embed_tokens.weight"].fill_(1.0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_plain_transformers_stops_where_the_template_ends_a_turn(tmp_path):
    """An `<|endoftext|>` base with a ChatML template says `<|im_end|>`, and went on until max_new_tokens."""
    folder = folder_of(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    speaking(folder, end)
    stops = Renderer.from_folder(folder).stop_token_ids

    def answer():
        model = AutoModelForCausalLM.from_pretrained(folder)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
        )
        return model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()

    assert missing_stops(folder, stops) == {end}
    assert answer() == [end] * 8
    complete_generation_config(folder, stops)
    assert answer() == [end]
    assert missing_stops(folder, stops) == frozenset()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [256, end]


def test_other_settings_stay_and_a_missing_file_is_made(tmp_path):
    """The file is one that people edit: temperature and the like are theirs."""
    folder = folder_of(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "eos_token_id": 7}))
    complete_generation_config(folder, {7, 258})
    assert json.loads((folder / "generation_config.json").read_text()) == {"temperature": 0.3, "eos_token_id": [7, 258]}
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "generation_config.json").unlink()
    complete_generation_config(other, {258})
    written = json.loads((other / "generation_config.json").read_text())
    assert written == {"eos_token_id": [256, 258], "pad_token_id": 256}
