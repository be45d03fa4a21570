"""The examples for a model that one has: unedited they say what to edit, and edited they run from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelwright.core.api.records import Example, Message
from modelwright.core.chat.renderer import read_template
from modelwright.core.config import read_run
from modelwright.core.config.schema import ScratchConfig
from modelwright.core.stages.prepare.tokenizers import scratch_renderer
from modelwright.core.stages.train.worker import scratch_config

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {"math": "math-specialized", "reasoning": "reasoning", "general": "general-assistant"}

MATH = [{"question": f"What is {n} and 1?", "answer": f"It is {n + 1}. #### {n + 1}"} for n in range(8)]
THOUGHTS = [
    {"prompt": f"What is {n} and 1?", "thinking": f"{n} and one more", "answer": f"#### {n + 1}"} for n in range(8)
]
CHAT = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(8)
]
ALPACA = [{"instruction": f"write {n}", "input": "", "output": f"here: {n}"} for n in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny stand-in for a pretrained model, in Hugging Face layout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    turns = [Message(role="user", content="What is 1 and 1?"), Message(role="assistant", content="It is 2.")]
    renderer = scratch_renderer("bpe", [Example(messages=turns)], vocab_size=400, template=read_template("chatml"))
    renderer.save(folder)
    scratch = ScratchConfig(hidden_size=16, layers=1, heads=2)
    LlamaForCausalLM(
        LlamaConfig(
            **scratch_config(scratch, vocabulary=renderer.vocab_size, stops=renderer.stop_token_ids, max_length=512)
        )
    ).save_pretrained(folder)
    return folder


def _write(folder: Path) -> dict[str, dict[str, Path]]:
    """Data of each example's kinds, by the key that names the file."""

    def lines(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / name

    pq.write_table(pa.Table.from_pylist(THOUGHTS), folder / "thoughts.parquet")
    (folder / "alpaca.json").write_text(json.dumps(ALPACA))
    math = lines("math.jsonl", MATH)
    return {
        "math": {"data.sources.0.path": math, "data.sources.1.path": math, "evaluate.0.path": math},
        "reasoning": {
            "data.sources.0.path": folder / "*.parquet",
            "evaluate.0.path": lines("thoughts.jsonl", THOUGHTS),
        },
        "general": {
            "data.sources.0.path": lines("chat.jsonl", CHAT),
            "data.sources.1.path": folder / "alpaca.json",
            "evaluate.0.path": lines("questions.jsonl", CHAT[:2]),
        },
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_edited_example_runs_from_its_rows_to_a_registered_and_graded_model(modelwright, tmp_path, home, base, name):
    """Only paths and sizes are edited; a model that is not good enough moves no alias."""
    paths = {key: json.dumps(str(path)) for key, path in {**_write(tmp_path)[name], "model.base": base}.items()}
    settings = {**paths, "train.batch_size": 4, "evaluate.0.generation.max_tokens": 8}
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = modelwright("run", EXAMPLES / f"{name}.toml", *overrides)
    assert done.returncode == 0, done.stderr
    [model] = json.loads(modelwright("models", "list", "--json").stdout)
    config = read_run(EXAMPLES / f"{name}.toml").configs[0]
    assert model["name"] == NAMES[name]
    assert model["tags"] == dict(config.registry.tags)
    assert set(model["metrics"]) == {config.evaluate[0].name}
    assert model["aliases"] == []
    assert "alias not moved" in done.stderr
    report = json.loads((home / "runs" / NAMES[name] / "prepare" / "report.json").read_text())
    assert report["rejected"] == report["too_long"] == 0
    assert ("thinking" in report["trained_by_role"]["assistant"]) == (name == "reasoning")


@pytest.mark.parametrize("name", NAMES)
def test_an_unedited_example_names_every_place_to_edit(modelwright, name):
    """All at once, before anything starts; each is marked in the file."""
    text = (EXAMPLES / f"{name}.toml").read_text()
    marked = re.findall(r'^(?:path|base) = "\./(.*)" # <-', text, re.MULTILINE)
    assert len(marked) == text.count('= "./')
    done = modelwright("run", EXAMPLES / f"{name}.toml", "--dry-run")
    assert done.returncode == 2
    errors = done.stderr.splitlines()
    assert len(errors) == len(marked)
    for path in marked:
        assert any(str(EXAMPLES / path) in error for error in errors), path


@pytest.mark.parametrize("name", NAMES)
def test_an_example_reads_in_a_minute(name):
    """Short, and narrow enough for any screen."""
    lines = (EXAMPLES / f"{name}.toml").read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
