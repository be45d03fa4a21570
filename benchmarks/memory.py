"""The memory table against measured peaks, on a CPU: one training of the trainer `local` for each shape.

python benchmarks/memory.py [--only NAME …]

Each training is a process of its own: two sequences in two micro-batches a step, one step after the preflight. Compared
are what the formula says (`predicted_memory` in the event `preflight`) and the peak of the process, less what it had
when all packages were imported. The difference may be 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BAR = 0.15
# Otherwise glibc keeps pieces of a few megabytes for later, and the peak is that of its pools.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144"}
# By name: the config, tokens of a sequence, and what else is set.
SHAPES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "llama, all weights": (
        {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
        | {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 8192, "tie_word_embeddings": False},
        1024,
        {},
    ),
    "qwen2, a large vocabulary, bfloat16": (
        {"model_type": "qwen2", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
        | {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 100_000, "tie_word_embeddings": True},
        1024,
        {"precision": "bfloat16"},
    ),
    "llama, adapter, long sequences": (
        {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
        | {"num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8192, "tie_word_embeddings": True},
        1536,
        {"adapter": True},
    ),
    "qwen3, recomputed activations": (
        {"model_type": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
        | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 8192},
        1536,
        {"checkpointing": True},
    ),
    "gpt2, all weights, bfloat16": (
        {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 1024, "vocab_size": 16384},
        1024,
        {"precision": "bfloat16"},
    ),
}


def resident() -> int:
    """Peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(name: str, folder: Path) -> dict[str, int]:
    """One training, in this process; what was predicted and what was measured."""
    import numpy as np
    import torch

    from modelwright.core.api import AdapterSettings, TrainSettings
    from modelwright.core.testing.trainer import Recorder, make_job, write_token_folder
    from modelwright.plugins.trainers import LocalOptions
    from modelwright.plugins.trainers.local import LocalTrainer

    config, length, more = SHAPES[name]
    (folder / "model").mkdir()
    ends = {"bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": length}
    (folder / "model/config.json").write_text(json.dumps(ends | config))
    drawn = np.random.default_rng(17).integers(0, config["vocab_size"], (2, length))
    rows = [(f"row-{number}", row.tolist(), [True] * length) for number, row in enumerate(drawn)]
    settings = TrainSettings(
        max_steps=1,
        batch_size=2,
        micro_batch_size=1,
        precision=more.get("precision", "float32"),
        checkpoint_every=10**6,
    )
    recorder = Recorder()
    job = make_job(
        folder,
        recorder,
        settings,
        model=folder / "model",
        tokens=write_token_folder(folder / "train", rows),
        adapter=AdapterSettings() if "adapter" in more else None,
    )
    torch.set_num_threads(2)
    torch.ones(8, 8).square().sum()
    before = resident()
    LocalTrainer(LocalOptions(gradient_checkpointing="checkpointing" in more)).train(job)
    (event,) = recorder.of("preflight")
    return {"predicted": event["predicted_memory"], "measured": resident() - before, "program": before}


def measure(name: str) -> dict[str, int]:
    """One training in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", name, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ALLOCATOR)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--child", nargs=2)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(train(given.child[0], Path(given.child[1]))))
        return
    print("| shape | predicted, MB | measured, MB | difference | program, MB |\n|---|---|---|---|---|")
    worst = 0.0
    for name in given.only:
        one = measure(name)
        off = one["predicted"] / one["measured"] - 1
        worst = max(worst, abs(off))
        sizes = [f"{one[key] / 1e6:,.0f}" for key in ("predicted", "measured")]
        print(f"| {name} | {sizes[0]} | {sizes[1]} | {off:+.1%} | {one['program'] / 1e6:,.0f} |", flush=True)
    if worst > BAR:
        raise SystemExit(f"a difference is {worst:.1%}, and the bar is {BAR:.0%}")


if __name__ == "__main__":
    main()
