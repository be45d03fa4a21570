"""`models export` for other tools and in another dtype: all of it or nothing, and said in a line."""

from __future__ import annotations

import json

import pytest
import torch
from gguf_models import folder_of
from transformers import AutoModelForCausalLM

from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.testing.registry import new_model


@pytest.fixture
def registry(home, tmp_path):
    """math@1: a bfloat16 model whose generation config does not list the token that ends its turns."""
    registry = open_registry(f"sqlite:///{home}/registry.db", discover())
    registry.add(new_model(), folder_of(tmp_path / "model", dtype=torch.bfloat16))
    return registry


def logits(folder, **options):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, **options)(torch.arange(12).view(1, 12)).logits.float()


def test_an_export_lists_every_stop_and_says_what_it_added(registry, command, tmp_path):
    """Its record describes the files as they are, so that it can be imported; the weights are the registry's."""
    done = command("models", "export", "--no-verify", "math", "out")
    assert (done.returncode, done.stdout) == (0, "exported math@1 to out\n")
    assert done.stderr == (
        "note: its generation_config.json did not list every token that ends a turn: added <|im_end|>\n"
    )
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [256, 258]
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "model"))
    again = json.loads(command("models", "import", "out", "--json").stdout)
    assert (again["version"], again["added"]) == (2, True)
    assert registry.verify(registry.get("math", 2)) == []
    # That one is complete, so its own files are exported.
    assert command("models", "export", "--no-verify", "math@2", "same").stderr == ""
    assert json.loads(command("models", "import", "same", "--json").stdout)["added"] is False


@pytest.mark.parametrize("name", ["out", "out.tar.gz"])
def test_another_dtype_can_be_chosen(registry, command, tmp_path, name):
    """The registry keeps what it has; the export is imported as a model of its own."""
    done = command("models", "export", "--no-verify", "math", name, "--dtype", "float32")
    assert "its weights are rounded to float32; registered are those in bfloat16\n" in done.stderr
    command("models", "import", name)
    folder = registry.folder(registry.get("math", 2))
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert torch.equal(logits(folder), logits(tmp_path / "model", dtype=torch.float32))
    assert registry.verify(registry.get("math", 1)) == []
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == []


def test_for_ollama_there_is_a_folder_with_both_files(registry, command, tmp_path):
    """The GGUF, the Modelfile that names it, and nothing else."""
    done = command("models", "export", "--no-verify", "math", "out", "--to", "ollama", "--quantize", "q8_0", "--json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    assert "FROM ./model.gguf\n" in (tmp_path / "out" / "Modelfile").read_text()
    assert len(json.loads(done.stdout)["notes"]) == 2
    direct = command("models", "export", "--no-verify", "math", "model.gguf", "--to", "gguf", "--quantize", "q8_0")
    assert direct.stdout == "exported math@1 to model.gguf\n"
    assert (tmp_path / "out" / "model.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ("out.gguf", "--quantize", "q8_0"),
        ("out", "--to", "gguf"),
        ("taken.gguf", "--to", "gguf"),
        ("out.gguf", "--to", "gguf", "--quantize", "q4_k_m"),
        ("out", "--to", "ollama", "--llama-cpp", "taken.gguf"),
    ],
    ids=["option without target", "name", "taken", "no llama.cpp", "not a llama.cpp"],
)
def test_what_cannot_be_exported_leaves_nothing(registry, command, tmp_path, wording, arguments):
    """One line that says what to do."""
    (tmp_path / "taken.gguf").write_text("")
    before = sorted(tmp_path.rglob("*"))
    done = command("models", "export", "--no-verify", "math", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    wording(done.stderr)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "cache" not in path.parts] == []


def test_an_adapter_is_merged_first(adapters, command, wording):
    """Other tools take whole models."""
    adapters.pair()
    done = command("models", "export", "--no-verify", "adapter", "out.gguf", "--to", "gguf")
    assert done.returncode == 2
    wording(done.stderr)


def test_a_damaged_model_is_not_exported(registry, command, tmp_path, wording):
    """A changed copy would get a digest of its own and hide it."""
    file = registry.folder(registry.get("math", 1)) / "model.safetensors"
    real = file.resolve()
    real.chmod(0o644)
    content = bytearray(real.read_bytes())
    content[-1] ^= 1
    real.write_bytes(content)
    done = command("models", "export", "--no-verify", "math", "out.gguf", "--to", "gguf")
    assert done.returncode == 1
    wording(done.stderr, real=real)
    assert not (tmp_path / "out.gguf").exists()
