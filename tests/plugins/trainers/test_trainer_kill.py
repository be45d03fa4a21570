"""SIGKILL at any step, more than once: the training ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from modelwright.core.testing.trainer import write_model

STEPS = 60

PROGRAM = """
import json, sys
from pathlib import Path
from modelwright.core.testing.trainer import Recorder, TrainerContract, make_job
from modelwright.plugins.trainers import modelwright_trainers

folder, events = Path(sys.argv[1]), Path(sys.argv[2])
recorder = Recorder()
settings = TrainerContract().settings(max_steps=int(sys.argv[3]), checkpoint_every=5)

def emit(kind, data):
    with events.open("a") as file:
        file.write(json.dumps([kind, data]) + "\\n")

(spec,) = modelwright_trainers()
spec.create().train(make_job(folder, recorder, settings, emit=emit))
"""


def read(path):
    """The events of a file, the line that a kill cut off aside."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def run(folder, events, *, kill_at=None):
    """Train in a process of its own; with `kill_at`, end it with SIGKILL once that step is told of."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, folder, events, str(STEPS)], env=environment)
    try:
        while kill_at is not None and process.poll() is None:
            if any(kind == "step" and data["step"] >= kill_at for kind, data in read(events)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        return process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


def test_a_training_killed_twice_ends_with_the_same_bytes(tmp_path):
    """Weights are byte for byte those of a training that ran through, and so are all losses; dropout included."""
    for name in ("through", "killed"):
        write_model(tmp_path / name / "base", dropout=0.3)
    assert run(tmp_path / "through", tmp_path / "through.jsonl") == 0

    logs = [tmp_path / f"killed-{attempt}.jsonl" for attempt in range(3)]
    assert run(tmp_path / "killed", logs[0], kill_at=13) == -signal.SIGKILL
    assert run(tmp_path / "killed", logs[1], kill_at=32) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "job" / "model").exists()
    assert run(tmp_path / "killed", logs[2]) == 0

    attempts = [read(log) for log in logs]
    for attempt in attempts[1:]:
        (resumed,) = [data["step"] for kind, data in attempt if kind == "resumed"]
        assert resumed >= 10
        assert resumed % 5 == 0
    expected = {data["step"]: data["loss"] for kind, data in read(tmp_path / "through.jsonl") if kind == "step"}
    assert sorted(expected) == list(range(1, STEPS + 1))
    seen = {}
    for attempt in attempts:
        for kind, data in attempt:
            if kind == "step":
                assert data["loss"] == expected[data["step"]]
                seen[data["step"]] = data["loss"]
    assert seen == expected
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        through = (tmp_path / "through" / "job" / "model" / name).read_bytes()
        assert (tmp_path / "killed" / "job" / "model" / name).read_bytes() == through
