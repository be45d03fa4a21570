"""Real input: GSM8K's own files, from the example's run.toml to a served model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm

from modelwright import Client

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.long
def test_gsm8k_goes_through_prepare_train_register_evaluate_and_serve(shared_data, modelwright, tmp_path, home):
    """A subset and a few steps: the accuracy is an honest near-zero, the way is the whole way."""
    settings = {
        "data.sources.0.path": json.dumps(str(shared_data / "gsm8k" / "train.jsonl")),
        "data.sources.0.limit": 400,
        "evaluate.0.path": json.dumps(str(shared_data / "gsm8k" / "test.jsonl")),
        "evaluate.0.limit": 30,
        "evaluate.0.generation.max_tokens": 32,
        "model.scratch.hidden_size": 32,
        "model.scratch.layers": 1,
        "model.scratch.vocab_size": 512,
        "train.max_steps": 8,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = modelwright("run", EXAMPLES / "gsm8k.toml", *overrides)
    assert done.returncode == 0, done.stderr

    report = json.loads((home / "runs" / "gsm8k" / "prepare" / "report.json").read_text())
    assert (report["rows"] + report["too_long"], report["rejected"], report["examples"]) == (400, 0, 400)
    [model] = json.loads(modelwright("models", "list", "--json").stdout)
    figure = model["metrics"]["gsm8k"]["math_accuracy"]
    assert figure["n"] == 30
    assert 0 <= figure["low"] <= figure["value"] <= 0.2
    shown = json.loads(modelwright("models", "show", "gsm8k", "--json").stdout)
    assert list(shown["data"]) == [str(shared_data / "gsm8k" / "train.jsonl")]

    command = [sys.executable, "-m", "modelwright.core", "serve", "gsm8k", "--listen", "127.0.0.1:0"]
    with warm.popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        line = next(line for line in server.stdout if line.startswith("serving on "))
        with Client(line.removeprefix("serving on ").partition(";")[0]) as client:
            answer = client.chat("How many clips did Natalia sell?", model="gsm8k", max_tokens=8)
            assert answer.served.digest == model["digest"]
            assert answer.usage.completion_tokens <= 8
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
        assert server.wait(timeout=60) == 0
