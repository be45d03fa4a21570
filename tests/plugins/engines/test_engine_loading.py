"""Which folders and options engine `torch` accepts, and what it says of the others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from modelwright.core.api.components import EngineSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.plugins import discover
from modelwright.core.testing.engine import request, run_all
from modelwright.plugins.engines import TorchOptions


@pytest.fixture
def folder(llama, tmp_path):
    """A copy of the model that a test may damage."""
    return shutil.copytree(llama, tmp_path / "model")


def test_the_plugin_is_found_by_name(llama):
    """`torch` is an engine among the installed plugins, and its descriptor makes one."""
    engine = discover().get(EngineSpec, "torch").create(TorchOptions(device="cpu"))
    engine.load(llama)
    try:
        assert run_all(engine, [request((5, 6), max_tokens=2)])[0].finish == "length"
    finally:
        engine.close()


def test_the_descriptor_imports_nothing_heavy():
    """Listing engines costs no PyTorch."""
    code = (
        "import sys; from modelwright.plugins.engines import modelwright_engines; list(modelwright_engines()); "
        "print({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"threads": 0}, {"dtype": "int8"}, {"device": 0}])
def test_impossible_options_are_refused(options):
    """The options' own validators speak before anything is loaded."""
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        TorchOptions(**options)


def test_no_folder(start, tmp_path, wording):
    """A folder that is not there is named."""
    with pytest.raises(ModelwrightError, match="/nowhere: ") as caught:
        start(tmp_path / "nowhere")
    wording(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(start, folder, name):
    """Each of the files that a model folder must have is asked for by name."""
    (folder / name).unlink()
    with pytest.raises(ModelwrightError, match=f"{name} is missing"):
        start(folder)


def test_no_weights(start, folder, wording):
    """A config without weights is not a model to run."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelwrightError, match=r"model\.safetensors") as caught:
        start(folder)
    wording(caught.value)


def test_pickled_weights_are_never_read(start, folder, tmp_path, wording):
    """A pickle may run code, so it is refused by its name, unread."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelwrightError, match=r"pytorch_model\.bin") as caught:
        start(folder)
    wording(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_lacking_tensors_are_an_error(start, folder):
    """A library that fills them with random numbers is not left to it."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelwrightError, match=r"lack 1 of LlamaForCausalLM's tensors, such as model\.layers\.1"):
        start(folder)


def test_tensors_of_another_size_are_an_error(start, folder):
    """The first is named, with both shapes."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(ModelwrightError) as caught:
        start(folder)
    rows, width = config["vocab_size"], config["hidden_size"]
    assert str(caught.value).startswith(f"{folder}: the weights do not fit config.json: ")
    assert f" has the shape {[rows, width]}, and the config makes it {[rows + 1, width]}; " in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_one_clear_line(start, folder, wording, name):
    """For any error of the library, the message names the folder and has one line."""
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ModelwrightError, match="the model cannot be loaded") as caught:
        start(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    wording(re.sub(r"loaded: .*;", "loaded: <what the library says>;", str(caught.value)))
    assert "\n" not in str(caught.value)


def test_a_folder_with_code_is_not_run(start, folder, tmp_path):
    """A config that points to Python files of its own is refused, and they are not imported."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    with pytest.raises(ModelwrightError, match="cannot be loaded"):
        start(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_model_without_a_key_value_cache_is_refused(start, make_model, tmp_path):
    """Mamba keeps a state of another kind, which this engine would ignore."""
    from transformers import MambaConfig

    config = MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, bos_token_id=2, eos_token_id=1)
    folder = make_model(tmp_path / "mamba", config)
    with pytest.raises(ModelwrightError, match="MambaForCausalLM has no key-value cache"):
        start(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "meta:x"])
def test_a_device_that_is_not_there(start, llama, device):
    """The message names the device that was asked for."""
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used"):
        start(llama, device=device)


def test_dtype_is_that_of_the_weights(start, llama):
    """float32 on the CPU unless another one is asked for."""
    import torch

    assert start(llama)._running.model.model.dtype == torch.float32
    narrow = start(llama, dtype="bfloat16")
    assert narrow._running.model.model.dtype == torch.bfloat16
    assert run_all(narrow, [request((5, 6), max_tokens=3, logprobs=True)])[0].finish == "length"


def test_small_models_get_one_thread(monkeypatch, start, llama):
    """A small model runs on one CPU thread unless someone asked for more, by option or by environment."""
    assert start(llama, threads=2)._running.model.threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert start(llama)._running.model.threads is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert start(llama)._running.model.threads == 1
