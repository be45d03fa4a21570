"""Fine-tuning a real model, side by side: the trainer `local` and TRL's SFTTrainer (with peft), on a CPU in bfloat16.

python benchmarks/train_real.py GSM8K.jsonl BASE --trl FOLDER [--steps 11] [--rounds 3] [--only NAME …] [--threads 2]

BASE is a model's folder, such as SmolLM2-135M-Instruct; `--trl` as for benchmarks/train.py. Conversations of GSM8K,
tokenised once by `modelwright prepare`, so that both train on the same ids and masks; 8 of them a step, about 1,800
tokens, in batches grouped by length. Full training and LoRA (rank 16, every linear layer) by each. Counted are
tokens, padding aside, in the median step after the warm-up, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import train as synthetic  # the folder of this script is on the path

BATCH = 8
RUN = """
name = "bench"
[model]
base = "{base}"
[data]
format = "math"
[data.tokens]
packing = "bucket"
max_length = 1024
[[data.sources]]
path = "{path}"
limit = 500
[train]
max_steps = 1
"""
NAMES = ("modelwright-full", "trl-full", "modelwright-lora", "trl-lora")
FASTER, LESS = 1.5, 0.8  # the bars: tokens a second and memory, relative to TRL's


def modelwright(folder: Path, base: Path, steps: int, *, lora: bool) -> dict[str, float]:
    """The trainer `local`, by its step events."""
    import attrs

    from modelwright.core.api import AdapterSettings

    spec, options = synthetic.trainer_of("local")
    job, recorder = synthetic.job_and_recorder(
        folder,
        tokens=folder / "home/runs/bench/prepare/train",
        model=base,
        max_steps=steps,
        batch_size=BATCH,
        precision="bfloat16",
    )
    if lora:
        job = attrs.evolve(job, adapter=AdapterSettings(rank=16, alpha=32))
    spec.create(options()).train(job)
    counted = recorder.of("step")[synthetic.WARMUP :]
    return {"rate": synthetic.rate((each["tokens"], each["seconds"]) for each in counted)}


def trl(folder: Path, base: Path, steps: int, *, lora: bool) -> dict[str, float]:
    """SFTTrainer; with an adapter the frozen weights are in bfloat16, as TRL's guides have them."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    config = {"bf16": True, "per_device_train_batch_size": BATCH}
    dtype = torch.bfloat16 if lora else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).train()
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    return synthetic.train_by_trl(folder, model, steps, config, adapter)


def contestant(name: str, folder: Path, base: Path, steps: int) -> dict[str, float]:
    """One measurement, in this process."""
    side, _, kind = name.partition("-")
    run = modelwright if side == "modelwright" else trl
    return {**run(folder, base, steps, lora=kind == "lora"), "megabytes": synthetic.megabytes()}


def measure(name: str, folder: Path, base: Path, steps: int) -> dict[str, float]:
    """One contestant in a process of its own."""
    command = [sys.executable, __file__, "rows", str(base), "--contestant", name, str(folder), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--trl", type=Path)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], choices=NAMES)
    parser.add_argument("--contestant", nargs=2)
    given = parser.parse_args()
    base = given.base.resolve()
    if given.contestant:
        name, folder = given.contestant
        print(json.dumps(contestant(name, Path(folder), base, given.steps)))
        return
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}:{given.trl or ''}"
    names = [name for name in given.only or NAMES if given.trl or not name.startswith("trl")]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "run.toml").write_text(RUN.format(base=base, path=given.rows.resolve()))
        synthetic.set_environment(folder, given.threads)
        prepare = [sys.executable, "-m", "modelwright.core", "prepare", "run.toml"]
        subprocess.run(prepare, cwd=folder, check=True, capture_output=True)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(given.rounds):
            for name in names:
                one = measure(name, folder, base, given.steps)
                found[name].append(one)
                print(f"    {name:18} {one['rate']:7,.0f} tokens/s, {one['megabytes']:6,.0f} MB", flush=True)
    report(found)


def report(found: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and ours relative to TRL's."""
    median = {
        name: {key: statistics.median(one[key] for one in measured) for key in ("rate", "megabytes")}
        for name, measured in found.items()
    }
    for kind in ("full", "lora"):
        ours, theirs = median.get(f"modelwright-{kind}"), median.get(f"trl-{kind}")
        if ours and theirs:
            print(
                f"{kind}: {ours['rate'] / theirs['rate']:.2f} of TRL's tokens/s (bar {FASTER}), "
                f"{ours['megabytes'] / theirs['megabytes']:.2f} of its memory (bar {LESS})"
            )


if __name__ == "__main__":
    main()
