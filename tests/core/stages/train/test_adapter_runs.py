"""Runs with `[adapter]`, by the command line: of a folder or a registered model, up to figures, and done once."""

from __future__ import annotations

import json

import pytest
from tiny_run import tiny_run

ADAPTER = "[adapter]\nrank = 4\ndropout = 0.1\n"


def run_of(base, *, adapter=ADAPTER):
    """A run that trains an adapter of a base, or all of its weights, and evaluates it."""
    return tiny_run(f"""
name = "tuned"
{adapter}
[model]
base = "{base}"
[data.tokens]
max_length = 128
[train]
max_steps = 4
learning_rate = 1e-2
[[evaluate]]
name = "sums"
path = "builtin:arithmetic/test"
metrics = ["math_accuracy"]
limit = 4
[evaluate.generation]
max_tokens = 4
""")


@pytest.fixture
def run(tmp_path, modelwright):
    """Runs a run file, and gives what the command printed."""

    def run(base, *more, adapter=ADAPTER):
        (tmp_path / "run.toml").write_text(run_of(base, adapter=adapter))
        done = modelwright("run", "run.toml", *more)
        assert done.returncode == 0, done.stderr
        return done

    return run


def plan(done):
    return {step["stage"]: step["why"] for step in json.loads(done.stdout)["tuned"]}


def model_files(version):
    return {file.path for file in version.files}


def test_an_adapter_of_a_registered_base_is_trained_registered_and_evaluated(adapters, run, home):
    """Again there is nothing to do; another rank trains again, on the same tokens."""
    base = adapters.add(adapters.base(), "base")
    run("base")
    version = adapters.registry.get("tuned")
    assert version.is_adapter
    assert (version.model.parent, version.model.base) == ("base@1", base.digest)
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"} <= model_files(version)
    assert "model.safetensors" not in model_files(version)
    assert version.metrics["sums"]["math_accuracy"].n == 4
    record = json.loads((adapters.registry.folder(version) / "modelwright.json").read_text())
    assert record["base"] == {"address": "base@1", "digest": base.digest}

    done = "done, and its inputs have not changed"
    assert set(plan(run("base", "--dry-run", "--json")).values()) == {done}
    changed = plan(run("base", "--dry-run", "--json", "--set", "adapter.rank=8"))
    assert changed["prepare"] == done
    assert changed["train"] == "changed: adapter.rank"


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
def test_tokens_that_were_added_to_the_folder_of_a_base_are_trained(adapters, run, modelwright, whole, tmp_path):
    """The embeddings grow, which is reported; evaluated and merged like any other."""
    base = adapters.base(added=2)
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    done = run(base, adapter="" if whole else ADAPTER)
    notice = f"2 tokens are new to the base: its embeddings grow from {rows} to {rows + 2}"
    assert notice in done.stdout + done.stderr
    version = adapters.registry.get("tuned")
    assert version.is_adapter != whole
    assert json.loads((adapters.registry.folder(version) / "config.json").read_text())["vocab_size"] == rows + 2
    assert version.metrics["sums"]["math_accuracy"].n == 4
    if not whole:
        merged = modelwright("models", "merge", "tuned", "--json")
        assert (merged.returncode, merged.stderr) == (0, "")
        assert json.loads(merged.stdout)["compared"]["moved"] > 0


def test_an_adapter_is_not_a_base(adapters, tmp_path, modelwright):
    """It is merged first; the line says how."""
    adapters.pair()
    (tmp_path / "run.toml").write_text(run_of("adapter"))
    done = modelwright("run", "run.toml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: [model] base adapter@1: this is an adapter")
    assert done.stderr.count("\n") == 1


def test_a_trainer_without_adapters_is_refused_with_one(adapters, tmp_path, install_plugin, modelwright):
    """Before anything starts: it would train the whole model, and nobody would notice."""
    install_plugin(
        "modelwright-plain",
        """
        from modelwright import TrainerSpec, hookimpl

        @hookimpl
        def modelwright_trainers():
            yield TrainerSpec(name="plain", summary="whole models", factory="nowhere:Plain")
        """,
    )
    (tmp_path / "run.toml").write_text(run_of(adapters.base()))
    done = modelwright("config", "check", "run.toml", "--set", "train.trainer='plain'")
    assert done.returncode == 2
    assert "adapter: trainer plain does not train adapters: remove [adapter]" in done.stderr


@pytest.mark.long
def test_a_missing_target_is_one_line(adapters, tmp_path, modelwright):
    """From the worker to the terminal."""
    (tmp_path / "run.toml").write_text(run_of(adapters.base()))
    done = modelwright("run", "run.toml", "--set", 'adapter.targets=["c_attn"]')
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "[adapter] targets: the model (llama) has no layer 'c_attn' that can have an adapter" in line
