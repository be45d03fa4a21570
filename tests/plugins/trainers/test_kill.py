"""SIGKILL at any step, more than once: the training ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from modelwright.core.stages.prepare.packs import write_packs
from modelwright.core.testing.trainer import (
    Recorder,
    TrainerContract,
    counting_rows,
    make_job,
    write_model,
    write_token_folder,
)
from modelwright.plugins.trainers import modelwright_trainers

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

spec, *_ = modelwright_trainers()
spec.create().train(make_job(folder, recorder, settings, emit=emit))
"""


def read(path):
    """The events of a file, the line that a kill cut off aside."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def kill_at(step, folder, events):
    """Train in a process of its own, and end it with SIGKILL once that step is reported; gives its exit status."""
    # Sums over another number of threads round in another way.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, folder, events, str(STEPS)], env=environment)
    try:
        while process.poll() is None:
            if any(kind == "step" and data["step"] >= step for kind, data in read(events)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        return process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.parametrize("packed", [False, True])
def test_a_training_killed_twice_ends_with_the_same_bytes(tmp_path, packed):
    """Weights are byte for byte those of a training that ran through, and so are all losses; dropout included."""
    for name in ("through", "killed"):
        write_model(tmp_path / name / "base", dropout=0.3)
        tokens = write_token_folder(tmp_path / name / "train", counting_rows(24))
        if packed:
            write_packs(tokens, 20)
    through = Recorder()
    settings = TrainerContract().settings(max_steps=STEPS, checkpoint_every=5)
    spec, *_ = modelwright_trainers()
    assert spec.create().train(make_job(tmp_path / "through", through, settings)).finished

    logs = [tmp_path / f"killed-{attempt}.jsonl" for attempt in range(2)]
    assert kill_at(13, tmp_path / "killed", logs[0]) == -signal.SIGKILL
    assert kill_at(32, tmp_path / "killed", logs[1]) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "job" / "model").exists()
    last = Recorder()
    assert spec.create().train(make_job(tmp_path / "killed", last, settings)).finished

    attempts = [*map(read, logs), last.events]
    for attempt in attempts[1:]:
        (resumed,) = [data["step"] for kind, data in attempt if kind == "resumed"]
        assert resumed >= 10
        assert resumed % 5 == 0
    expected = {data["step"]: data["loss"] for data in through.of("step")}
    assert sorted(expected) == list(range(1, STEPS + 1))
    seen = {}
    for attempt in attempts:
        for kind, data in attempt:
            if kind == "step":
                assert data["loss"] == expected[data["step"]]
                seen[data["step"]] = data["loss"]
    assert seen == expected
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        whole = (tmp_path / "through" / "job" / "model" / name).read_bytes()
        assert (tmp_path / "killed" / "job" / "model" / name).read_bytes() == whole
