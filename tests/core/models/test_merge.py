"""Merging: one whole model that says what base and adapter say, or nothing at all."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modelwright.core.api.adapters import apply_adapter
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.chat.renderer import checked_renderer
from modelwright.core.models import merge as merging
from modelwright.core.models.adapters import adapter_base
from modelwright.core.models.exporting import prepared
from modelwright.core.models.finishing import weights_dtype
from modelwright.core.models.hf_folder import folder_problems
from modelwright.core.models.merge import merge


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(12).view(2, 6)).logits


@pytest.mark.parametrize("settings", [{}, {"kind": "rslora", "rank": 32}, {"targets": ("q_proj", "up_proj")}])
def test_what_is_registered_says_what_base_and_adapter_say(adapters, settings):
    """Read again from the registry, by transformers alone; the adapter did something."""
    _, adapter = adapters.pair(**settings)
    done = merge(adapters.registry, adapter)
    folder = adapters.registry.folder(done.version)
    base = AutoModelForCausalLM.from_pretrained(adapters.folder / "base")
    alone = logits(base)
    together = logits(apply_adapter(base, adapters.folder / "adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (together - alone).abs().max() > 0.1
    assert torch.allclose(merged, together, atol=1e-4)
    assert done.compared.difference < done.compared.allowed < done.compared.moved


def test_it_is_a_whole_model_with_the_adapters_tokenizer_and_lineage(adapters):
    """It can be a base, be evaluated and served, and its card says where it came from."""
    _, adapter = adapters.pair()
    version = merge(adapters.registry, adapter).version
    folder = adapters.registry.folder(version)
    assert (version.name, version.model.parent, version.model.base) == (
        "adapter-merged",
        adapter.address,
        adapter.digest,
    )
    assert not version.is_adapter
    assert adapter_base(adapters.registry, version) is None
    assert list(folder_problems(folder)) == []
    fingerprint = checked_renderer(folder).fingerprint
    assert fingerprint == checked_renderer(adapters.folder / "adapter").fingerprint
    assert json.loads((folder / "modelwright.json").read_text()) == {"renderer": fingerprint}


def test_the_same_again_gives_the_version_that_is_there(adapters):
    """Under another name it is another model, of the same bytes."""
    _, adapter = adapters.pair()
    first = merge(adapters.registry, adapter)
    again = merge(adapters.registry, adapter)
    assert (again.version.address, again.compared) == (first.version.address, None)
    other = merge(adapters.registry, adapter, "other")
    assert other.version.address == "other@1"
    assert other.version.digest == first.version.digest


def test_a_small_effect_is_kept_whole_in_float32(adapters):
    """Rounded to the bfloat16 of the base, much of it is lost; the record says the dtype, and both stay registered."""
    place = adapters.base()
    AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).save_pretrained(place)
    folder = adapters.adapter(place)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: value / 50 for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    base = adapters.add(place)
    adapter = adapters.add(folder, source="base", base=base.digest, parent=base.address)
    loaded = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    alone = logits(loaded)
    together = logits(apply_adapter(loaded, folder))
    lost = {}
    for dtype in (None, "float32"):
        version = merge(adapters.registry, adapter, dtype=dtype).version
        merged = AutoModelForCausalLM.from_pretrained(adapters.registry.folder(version), dtype="auto")
        assert merged.dtype == (torch.float32 if dtype else torch.bfloat16)
        assert version.model.config.get("merge") == ({"dtype": dtype} if dtype else None)
        lost[dtype] = (logits(merged.float()) - together).norm() / (together - alone).norm()
    assert lost["float32"] < 1e-4
    assert lost[None] > 0.1
    assert merge(adapters.registry, adapter, dtype="float32").version.address == "adapter-merged@2"
    with prepared(adapters.registry, version, "bfloat16", lambda _: None) as (_, exported):
        assert weights_dtype(exported) == "bfloat16"


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_are_in_the_merged_model(adapters, tied):
    """Their rows are the adapter's; the embeddings have grown."""
    base = adapters.base(added=2, tie_word_embeddings=tied)
    folder = adapters.adapter(base)
    found = adapters.add(base, "base")
    adapter = adapters.add(folder, source="base", base=found.digest, parent=found.address)
    version = merge(adapters.registry, adapter).version
    merged = AutoModelForCausalLM.from_pretrained(adapters.registry.folder(version))
    trained = load_file(folder / "adapter_model.safetensors")
    rows = {name: value for name, value in trained.items() if "trainable_tokens" in name}
    assert len(rows) == (1 if tied else 2)
    for name, value in rows.items():
        layer = merged.get_output_embeddings() if "lm_head" in name else merged.get_input_embeddings()
        assert torch.equal(layer.weight[-2:], value)


def test_nothing_is_registered_where_they_differ(adapters, monkeypatch):
    """With no tolerance at all rounding is enough; the line says by how much."""
    monkeypatch.setattr(merging, "TOLERANCE", 0.0)
    _, adapter = adapters.pair()
    with pytest.raises(
        ModelwrightError, match=r"adapter@1 was not merged: the merged model's logits differ .* by [1-9]"
    ):
        merge(adapters.registry, adapter)
    assert {model.name for model in adapters.registry.find()} == {"base", "adapter"}


def test_an_adapter_of_no_numbers_is_refused(adapters):
    """Nothing is equal to them, and nothing is larger."""
    base = adapters.add(adapters.base())
    folder = adapters.adapter(adapters.folder / "base")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[min(tensors)].fill_(float("nan"))
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = adapters.add(folder, source="base", base=base.digest, parent=base.address)
    with pytest.raises(ModelwrightError, match="adapter@1 cannot be merged") as caught:
        merge(adapters.registry, adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", ["base", "adapter"])
def test_flipped_bytes_are_refused(adapters, damaged):
    """Every file of both is read again first."""
    pair = dict(zip(("base", "adapter"), adapters.pair(), strict=True))
    name = "model.safetensors" if damaged == "base" else "adapter_model.safetensors"
    place = (adapters.registry.folder(pair[damaged]) / name).resolve()
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.chmod(0o644)
    place.write_bytes(content)
    with pytest.raises(ModelwrightError, match=f"adapter@1 cannot be merged: {damaged}@1 is damaged: {name}"):
        merge(adapters.registry, pair["adapter"])


def test_a_whole_model_is_refused_in_a_line(adapters):
    """There is nothing to merge."""
    base, _ = adapters.pair()
    with pytest.raises(UsageError) as caught:
        merge(adapters.registry, base)
    assert "base@1" in str(caught.value)


def test_a_name_that_cannot_be_is_refused_before_any_work(adapters):
    """The adapter's own may have been as long as names are."""
    base, _ = adapters.pair()
    long = adapters.add(
        shutil.copytree(adapters.folder / "adapter", adapters.folder / "long"),
        "l" * 125,
        base=base.digest,
        parent=base.address,
    )
    with pytest.raises(UsageError, match=r"is not a model name: expected .* --name"):
        merge(adapters.registry, long)
