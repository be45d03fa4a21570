"""Training on one GPU, side by side: the trainer `local` and transformers' Trainer, all weights and LoRA.

python benchmarks/gpu_train.py [--steps 12] [--packs 8] [--micro 2] [--documents 4] [--rounds 3] [--only NAME …]

A Llama of 1.5 B parameters from scratch, packs of 4,096 random tokens, bfloat16 with float32 weights and optimiser. MFU
counts 6 operations for each token and weight (4 where the weight is frozen; the input embeddings do not count) and
6 · layers · width · length for causal attention within a document, over what the card reaches with a dense bfloat16
product of matrices in the same run. Each measurement is a process of its own. It needs a GPU of about 80 GB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACK = 4096
LAYERS, WIDTH, VOCABULARY = 30, 2048, 32_000
WARMUP = 3  # steps that are not counted
RATE = 1e-4
SEED = 17
NAMES = ["modelwright", "trainer", "modelwright-lora", "trainer-lora"]


def peak() -> float:
    """Operations a second of a dense bfloat16 product: the best of a few times."""
    import torch

    size, times = 8192, []
    one = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        one @ one
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return float(2 * size**3 / min(times[2:]))


def write_llama(folder: Path) -> None:
    """The config alone: each contestant draws the weights itself."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=5632,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=PACK,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


def documents(packs: int, each: int) -> list[list[int]]:
    """Random documents, `each` of them to a pack."""
    import numpy as np

    drawn = np.random.default_rng(SEED).integers(0, VOCABULARY, (packs * each, PACK // each))
    return [[int(token) for token in row] for row in drawn]


def modelwright(folder: Path, given: argparse.Namespace, *, lora: bool) -> dict[str, Any]:
    """The trainer `local`, by its step events."""
    from modelwright.core.api import AdapterSettings, TrainSettings
    from modelwright.core.testing.trainer import Recorder, make_job, write_token_folder
    from modelwright.plugins.trainers import modelwright_trainers

    each, recorder = given.documents, Recorder()
    rows = [(f"row-{number}", ids, [True] * len(ids)) for number, ids in enumerate(documents(given.packs, each))]
    packs = [list(range(start, start + each)) for start in range(0, len(rows), each)]
    settings = TrainSettings(
        max_steps=given.steps,
        batch_size=given.packs,
        micro_batch_size=given.micro,
        learning_rate=RATE,
        precision="bfloat16",
        checkpoint_every=10**6,
    )
    job = make_job(
        folder,
        recorder,
        settings,
        model=folder / "model",
        tokens=write_token_folder(folder / "train", rows, packs=packs),
        adapter=AdapterSettings() if lora else None,
    )
    spec = next(spec for spec in modelwright_trainers() if spec.name == "local")
    spec.create(spec.options()).train(job)
    started, counted = recorder.of("started")[0], recorder.of("step")[WARMUP:]
    return {
        "seconds": sum(step["seconds"] for step in counted) / len(counted),
        "memory": counted[-1]["memory"],
        "parameters": started["parameters"],
        "trainable": started["trainable"],
    }


def trainer(folder: Path, given: argparse.Namespace, *, lora: bool) -> dict[str, Any]:
    """transformers' Trainer on the same packs, whose documents it tells apart by their positions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"), dtype=torch.float32)
    if lora:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    each, rows = given.documents, documents(given.packs, given.documents)
    packs = [list(itertools.chain(*rows[start : start + each])) for start in range(0, len(rows), each)]
    positions = list(range(PACK // each)) * each
    # No document predicts the beginning of the next.
    labels = [[token if place else -100 for token, place in zip(pack, positions, strict=True)] for pack in packs]
    data = [
        {"input_ids": ids, "position_ids": positions, "labels": wanted}
        for ids, wanted in zip(packs, labels, strict=True)
    ] * given.steps
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=given.steps,
        per_device_train_batch_size=given.micro,
        gradient_accumulation_steps=given.packs // given.micro,
        learning_rate=RATE,
        optim="adamw_torch_fused",
        bf16=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    model.config.use_cache = False

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        return {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}

    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Clock()]).train()
    return {
        "seconds": (ends[-1] - ends[WARMUP - 1]) / (given.steps - WARMUP),
        "memory": torch.cuda.max_memory_allocated(),
        "parameters": sum(each.numel() for each in model.parameters()),
        "trainable": sum(each.numel() for each in model.parameters() if each.requires_grad),
    }


def contestant(name: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One measurement, with the peak that the card reached beside it."""
    reached = peak()
    run = modelwright if name.startswith("modelwright") else trainer
    measured = run(folder, given, lora=name.endswith("-lora"))
    tokens = given.packs * PACK
    trained, all_of_them = measured["trainable"], measured["parameters"]
    embeddings = VOCABULARY * WIDTH
    # Without an adapter the embeddings are trained too, and no product is made with them.
    operations = 6 * trained + 4 * (all_of_them - trained) - (6 if trained == all_of_them else 4) * embeddings
    operations += 6 * LAYERS * WIDTH * PACK // given.documents
    rate = tokens / measured["seconds"]
    return measured | {"rate": rate, "peak": reached, "mfu": operations * rate / reached}


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One contestant in a process of its own, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder) / "model")
        command = [sys.executable, __file__, "--contestant", name, folder]
        for option in ("steps", "packs", "micro", "documents"):
            command += [f"--{option}", str(getattr(given, option))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    for option, value in (("steps", 12), ("packs", 8), ("micro", 2), ("documents", 4), ("rounds", 3)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--contestant", nargs=2)
    given = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would take all that it sees
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu_train.py: this machine has no CUDA GPU: run it on one that has; train.py is for the CPU")
    if given.contestant:
        name, folder = given.contestant
        print(json.dumps(contestant(name, Path(folder), given)))
        return
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; packs of {PACK}, {given.documents} documents each"
    )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
    for _ in range(given.rounds):
        for name in given.only:
            found[name].append(measure(name, given))
    rates = {name: statistics.median(each["rate"] for each in rows) for name, rows in found.items()}
    print("| | of the Trainer's | MFU | tokens/s | GB | peak, TFLOP/s |\n|---|---|---|---|---|---|")
    for name, rows in found.items():
        other = rates.get(name.replace("modelwright", "trainer"))
        mfu, reached = (statistics.median(row[key] for row in rows) for key in ("mfu", "peak"))
        print(
            f"| {name} | {f'{rates[name] / other:.2f}' if other else '-'} | {mfu:.3f} | {rates[name]:,.0f} | "
            f"{max(row['memory'] for row in rows) / 1e9:.1f} | {reached / 1e12:.0f} |"
        )


if __name__ == "__main__":
    main()
