"""A GGUF file as a base: dequantized once, known by its content, and refused in one line if it cannot be read."""

from __future__ import annotations

import hashlib
import json
import shutil

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_models import byte_tokenizer, folder_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.chat.renderer import checked_renderer
from modelwright.core.models import gguf_base
from modelwright.core.models.adapters import adapter_base
from modelwright.core.models.base import resolve_base
from modelwright.core.models.gguf_base import cached, dequantize
from modelwright.core.models.gguf_export import write_gguf


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A model, the GGUF of it, and a home in which that is dequantized."""
    place = tmp_path_factory.mktemp("gguf")
    folder_of(place / "model", hidden_size=64, intermediate_size=64, tokenizer=byte_tokenizer(merges=[("1", "2")]))
    write_gguf(place / "model", place / "model.gguf", name="model", quantize="q8_0", llama_cpp=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELWRIGHT_HOME", str(place / "home"))
        dequantize(place / "model.gguf", "model.gguf")
    return place


@pytest.fixture
def place(ready, tmp_path, monkeypatch):
    """A copy of them."""
    shutil.copytree(ready, tmp_path / "here")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(tmp_path / "here" / "home"))
    return tmp_path / "here"


def test_it_is_the_model_in_the_file(place):
    """Its logits are those that transformers computes from the file; its tokens those of the model that it was."""
    base = resolve_base(str(place / "model.gguf"), lambda: pytest.fail("no registry is needed"))
    ids = torch.arange(24).view(2, 12)
    loaded = AutoModelForCausalLM.from_pretrained(base.folder)
    direct = AutoModelForCausalLM.from_pretrained(place, gguf_file="model.gguf", dtype=torch.bfloat16)
    assert torch.equal(loaded(ids).logits, direct(ids).logits)
    text = "Is 12 + 121 = 133? <|im_end|>"
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (place / "model", base.folder)]
    expected, found = (tokenizer(text)["input_ids"] for tokenizer in tokenizers)
    assert found == expected
    assert checked_renderer(base.folder).stop_token_ids == checked_renderer(place / "model").stop_token_ids


def test_its_sha256_is_its_identity_and_is_recorded(place):
    """The digest that the hub shows of the file; with it the type of the weights."""
    sha256 = hashlib.sha256((place / "model.gguf").read_bytes()).hexdigest()
    base = resolve_base(str(place / "model.gguf"), lambda: pytest.fail("no registry is needed"))
    assert (base.digest, base.parent) == (sha256, None)
    record = json.loads((base.folder / "modelwright.json").read_text())
    assert record == {"gguf": {"digest": sha256, "weights": "Q8_0", "dtype": "bfloat16", "unknown_split": None}}


def test_the_same_content_is_dequantized_once(place, monkeypatch):
    """Under any name; other content is dequantized again."""
    monkeypatch.setattr(gguf_base, "_make", lambda *_: pytest.fail("it is in the cache"))
    (place / "model.gguf").rename(place / "other.GGUF")
    folder = dequantize(place / "other.GGUF", "other.GGUF").folder
    assert folder == cached(place / "other.GGUF", "other.GGUF")
    with (place / "other.GGUF").open("ab") as file:
        file.write(b"\0")
    assert cached(place / "other.GGUF", "other.GGUF") is None


def test_an_adapter_finds_its_gguf_again_or_the_model_imported_from_it(place, adapters, command):
    """By the file's digest: another file in its place is refused."""
    source = place / "model.gguf"
    base = resolve_base(str(source), lambda: adapters.registry)
    folder = adapters.adapter(base.folder)
    version = adapters.add(folder, source=str(source), base=base.digest)
    assert adapter_base(adapters.registry, version).folder == base.folder
    done = command("models", "import", source, "--name", "imported", "--registry", f"sqlite:///{adapters.folder}/r.db")
    assert (done.returncode, done.stdout[:19]) == (0, "imported imported@1")
    assert "its Q8_0 weights are used as bfloat16, dequantized by transformers" in done.stderr


@pytest.fixture
def broken(tmp_path):
    """Writes a GGUF with some keys and one tensor."""

    def write(arch="llama", *, tokens=True, **values):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", arch)
        if tokens:
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(["a", "b"])
            writer.add_token_types([1, 1])
            writer.add_token_merges(["a b"])
        for key, value in values.items():
            writer.add_uint16(key.replace("_", "."), value)
        writer.add_tensor("token_embd.weight", np.zeros((2, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return write


@pytest.mark.parametrize("what", ["architecture", "not a language model", "parts", "no tokenizer", "no tensors", "cut"])
def test_what_transformers_cannot_read_is_refused(tmp_path, broken, wording, what):
    """One line that names the architecture or what is wrong, and what to do."""
    if what == "architecture":
        path = broken("rwkv7")
    elif what == "not a language model":
        path = broken("clip")
    elif what == "parts":
        path = broken(split_count=3)
    elif what == "no tokenizer":
        path = broken(tokens=False)
    else:
        folder = folder_of(tmp_path / "whole", tokenizer=byte_tokenizer(merges=[("1", "2")]))
        path = tmp_path / "model.gguf"
        write_gguf(folder, path, name="model", quantize=None, llama_cpp=None)
        if what == "cut":
            path.write_bytes(path.read_bytes()[:-40_000])
        else:
            path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_no.weight"))
    with pytest.raises(gguf_base._UnusableError) as caught:
        gguf_base._convert(path, tmp_path / "out")
    wording(caught.value, version=transformers.__version__)


@pytest.mark.parametrize("what", ["missing", "other", "folder"])
def test_what_is_not_a_gguf_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, wording, what):
    """By its first four bytes."""
    monkeypatch.setattr(gguf_base, "_make", lambda *_: pytest.fail("nothing is loaded"))
    path = tmp_path / "model.gguf"
    if what == "other":
        path.write_bytes(b"PK\x03\x04 zip")
    elif what == "folder":
        path.mkdir()
    with pytest.raises(UsageError) as caught:
        resolve_base(str(path), lambda: pytest.fail("no registry is needed"))
    wording(caught.value)


@pytest.mark.parametrize(
    ("output", "code"), [('{"error": "it has no tokenizer: use another"}', 0), ("", 137)], ids=["refused", "killed"]
)
def test_a_conversion_that_fails_leaves_nothing(tmp_path, home, monkeypatch, wording, output, code):
    """Neither in the cache nor beside it; also if the system ends the process for its memory."""
    import subprocess

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(
        gguf_base.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), code, output, "Killed\n")
    )
    with pytest.raises(ModelwrightError) as caught:
        dequantize(tmp_path / "model.gguf", "[model] base model.gguf")
    wording(caught.value)
    assert sorted(path.name for path in (home / "cache" / "gguf").iterdir()) == [".lock"]


def test_an_unknown_way_to_split_texts_is_said(tmp_path):
    """GPT-2's is taken without a word, and numbers may become other tokens than in llama.cpp."""
    folder = folder_of(tmp_path / "model", tokenizer=byte_tokenizer(merges=[("1", "2")]))
    write_gguf(folder, tmp_path / "model.gguf", name="model", quantize=None, llama_cpp=None)
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content.replace(b"smollm", b"porrid"))
    (tmp_path / "out").mkdir()
    made = gguf_base._convert(tmp_path / "model.gguf", tmp_path / "out")
    assert made == {"weights": "F32", "dtype": "float32", "unknown_split": "porrid"}
    text = str(gguf_base.Dequantized(folder=tmp_path, digest="", **made))
    assert text.endswith("transformers does not know its pre-tokenizer 'porrid': tokens may differ")
