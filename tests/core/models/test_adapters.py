"""The base of an adapter is found again, wherever it was, and no other one is taken for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from attrs import frozen
from transformers import AutoModelForCausalLM

from modelwright.core.api.components import EngineSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.models.adapters import BareAdapter, adapter_base, base_name, load_engine, needed_by
from modelwright.core.models.base import folder_digest
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.registry.importing import import_model


def elsewhere(folder):
    """Another registry."""
    return open_registry(f"sqlite:///{folder}/other/registry.db", discover())


def test_a_whole_model_has_no_base(adapters):
    """Nor has one that was trained from another."""
    assert adapter_base(adapters.registry, adapters.add(adapters.base(), parent="older@1")) is None


def test_a_registered_base_is_found_by_its_address(adapters):
    """The version that it was trained on, though there is a newer one."""
    base, adapter = adapters.pair()
    adapters.add(adapters.base("newer", seed=9), "base-newer")
    found = adapter_base(adapters.registry, adapter)
    assert found.version.address == base.address == base_name(adapter)
    assert (found.folder / "model.safetensors").is_file()


def test_in_another_registry_it_is_found_by_its_digest(adapters, tmp_path, wording):
    """Under any name that it was imported with."""
    base, adapter = adapters.pair()
    other = elsewhere(tmp_path)
    adapter = other.add(adapter.model, adapters.folder / "adapter")
    with pytest.raises(ModelwrightError) as caught:
        adapter_base(other, adapter)
    assert base.digest in str(caught.value)
    wording(caught.value, digest=base.digest)
    there = other.add(type(base.model)(name="renamed", fingerprint="x"), adapters.folder / "base")
    assert adapter_base(other, adapter).version.address == there.address


def test_another_model_at_the_address_is_refused(adapters, tmp_path, wording):
    """The line names both digests."""
    base, adapter = adapters.pair()
    other = elsewhere(tmp_path)
    adapter = other.add(adapter.model, adapters.folder / "adapter")
    wrong = other.add(base.model, adapters.base("wrong", seed=9))
    with pytest.raises(ModelwrightError) as caught:
        adapter_base(other, adapter)
    wording(caught.value, digest=base.digest, other=wrong.digest)


@pytest.fixture
def of_folder(adapters):
    """An adapter whose base is a folder."""
    base = adapters.base()
    return adapters.add(adapters.adapter(base), source=str(base), base=folder_digest(base))


def test_a_folder_is_found_where_it_was(adapters, of_folder):
    """By the path that the run's configuration has; it is what the base is called."""
    found = adapter_base(adapters.registry, of_folder)
    assert (found.folder, found.version) == (adapters.folder / "base", None)
    assert base_name(of_folder) == str(adapters.folder / "base")


def test_a_folder_that_is_gone_is_found_when_it_was_registered(adapters, of_folder):
    """What does not belong to the base, such as its README, does not matter."""
    moved = (adapters.folder / "base").rename(adapters.folder / "moved")
    with pytest.raises(ModelwrightError, match=r"adapter@1 is missing: it was in .*/base \(digest [0-9a-f]{64}\)"):
        adapter_base(adapters.registry, of_folder)
    (moved / "README.md").write_text("A base.")
    there = adapters.add(moved)
    assert adapter_base(adapters.registry, of_folder).version.address == there.address


def test_a_folder_whose_bytes_changed_is_refused(adapters, of_folder):
    """One flipped bit in the weights; the line names both digests."""
    weights = adapters.folder / "base" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelwrightError, match="is an adapter for another base") as caught:
        adapter_base(adapters.registry, of_folder)
    assert of_folder.model.base in str(caught.value)
    assert folder_digest(adapters.folder / "base") in str(caught.value)


def test_a_base_of_the_hub_is_found_in_its_cache(adapters, tmp_path, monkeypatch):
    """At its commit; another content there is refused."""
    commit = "0" * 40
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / commit
    shutil.copytree(adapters.base(), snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, address = adapters.adapter(adapters.folder / "base"), f"org/name@{commit}"
    adapter = adapters.add(folder, source="org/name", base=folder_digest(snapshot), parent=address)
    assert adapter_base(adapters.registry, adapter).folder.resolve() == snapshot.resolve()
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(ModelwrightError, match=f"is an adapter for another base: .* but {address} has"):
        adapter_base(adapters.registry, adapter)


def test_a_base_is_needed_while_no_other_version_is_the_same(adapters):
    """Adapters that have lost it would be nothing."""
    base, adapter = adapters.pair()
    assert [each.address for each in needed_by(adapters.registry, base)] == [adapter.address]
    assert needed_by(adapters.registry, adapter) == []
    adapters.add(adapters.folder / "base", "copy")
    assert needed_by(adapters.registry, base) == []


@frozen
class WholeEngine:
    """An engine that knows nothing of adapters."""

    loaded: list[Path]

    def load(self, folder):
        self.loaded.append(folder)


def test_an_engine_of_whole_models_is_not_given_an_adapter():
    """It would fail on its files, or run its base."""
    engine = WholeEngine([])
    spec = EngineSpec(name="whole", summary="whole models", factory="nowhere:Whole")
    load_engine(engine, spec, Path("model"), None)
    assert engine.loaded == [Path("model")]
    with pytest.raises(UsageError, match="engine 'whole' cannot run adapters: merge"):
        load_engine(engine, spec, Path("adapter"), Path("base"))


# What peft wrote


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Bases and an adapter that peft wrote, once for all tests."""
    return tmp_path_factory.mktemp("kept") / "adapters"


@pytest.fixture
def plain(adapters, kept):
    """That adapter; base@1 and other@1 are registered."""
    if not kept.exists():
        model = AutoModelForCausalLM.from_pretrained(adapters.base(), dtype=torch.float32)
        peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(adapters.folder / "plain")
        adapters.base("other", hidden_size=32)
        shutil.copytree(adapters.folder, kept)
    shutil.copytree(kept, adapters.folder, dirs_exist_ok=True)
    changed(base_model_name_or_path=str(adapters.folder / "base"))(adapters.folder / "plain")
    for name in ("base", "other"):
        adapters.add(adapters.folder / name)
    return adapters.folder / "plain"


def changed(**values):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def with_token(folder):
    from tokenizers import Tokenizer

    shutil.copytree(folder.parent / "base", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def cut_short(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 99)


def imported(adapters, source, base):
    found = BareAdapter.find(source, base, adapters.registry)
    return import_model(adapters.registry, source, name="found", check=found.complete, origin=found.origin)


REFUSED = {
    "no base": (changed(base_model_name_or_path=None), None, UsageError),
    "a bare name": (changed(base_model_name_or_path="base"), None, UsageError),
    "a folder that is gone": (changed(base_model_name_or_path="/gone/base"), None, UsageError),
    "of the hub, not cached": (changed(base_model_name_or_path="org/name", revision="v1"), None, ModelwrightError),
    "an empty base": (None, "", UsageError),
    "a name that is not registered": (None, "bass", UsageError),
    "another base": (None, "other", ModelwrightError),
    "another kind": (changed(peft_type="IA3"), None, ModelwrightError),
    "a setting that is not supported": (changed(use_qalora=True), None, ModelwrightError),
    "not JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), None, UsageError),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), None, ModelwrightError),
    "half of the weights": (cut_short, None, ModelwrightError),
    "a token of its own": (with_token, None, UsageError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused(adapters, home, plain, wording, monkeypatch, name):
    """In one line; nothing is registered or left behind."""
    spoil, base, kind = REFUSED[name]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    if spoil:
        spoil(plain)
    with pytest.raises(ModelwrightError) as caught:
        imported(adapters, plain, base)
    assert isinstance(caught.value, UsageError) == (kind is UsageError)
    assert str(caught.value).startswith(f"{plain} cannot be imported: ")
    wording(caught.value)
    assert len(adapters.registry.find()) == 2
    assert not list((home / "cache").glob(".tmp-*"))
