"""Training on one GPU, side by side: the trainer `local` and transformers' Trainer, in at most eight minutes.

python benchmarks/gpu_train.py [--within 480] [--rounds 1] [--only NAME …] [--attention NAME] [--documents 4]

Packs of 4,096 random tokens in bfloat16: a Llama of 1.5 B parameters from scratch, all weights in float32 with AdamW;
LoRA on one of 7 B in bfloat16; LoRA on the same in nf4. Both sides get the same attention, packs, weights,
micro-batches and steps, and neither recomputes activations at 1.5 B while both do at 7 B. MFU counts 6 operations for
each token and weight (4 where the weight is frozen; the input embeddings do not count) and 6 · layers · width · length
for causal attention within a document, over what the card reaches with a dense bfloat16 product of matrices in the same
run.

Each measurement is a process of its own, which does not begin when less than its share of the time is left. Nothing is
saved but the base of 7 B, once, and each trained model: see `disk_bytes`. It needs a GPU of about 80 GB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACK = 4096
WARMUP = 3  # steps that are not counted
RATE = 1e-4
SEED = 17
VOCABULARY = 32_000
# Layers, width, inner width, heads and key heads of each model, and sequences of its micro-batches.
MODELS = {"1.5b": (30, 2048, 5632, 16, 4, 2), "7b": (32, 4096, 11008, 32, 32, 2)}
NAMES = ["modelwright-full", "trainer-full", "modelwright-lora", "trainer-lora", "modelwright-nf4", "trainer-nf4"]
# Seconds that a measurement may take; the first of the 7 B models are also written.
SHARE = 75


def model_of(name: str) -> str:
    """Which of `MODELS` a contestant trains."""
    return "1.5b" if name.endswith("-full") else "7b"


def parameters(model: str) -> int:
    """The number of weights of a model, whose input and output embeddings are apart."""
    layers, width, inner, heads, keys, _ = MODELS[model]
    block = 2 * width * width + 2 * width * (width // heads) * keys + 3 * width * inner + 2 * width
    return layers * block + 2 * VOCABULARY * width + width


def disk_bytes(names: list[str]) -> int:
    """What the measurements have on the disk at once: a base of 7 B in bfloat16, and a trained 1.5 B in float32.

    There is no preflight and no checkpoint, which would take 48 bytes for each weight that is trained.
    """
    base = 2 * parameters("7b") if any(model_of(name) == "7b" for name in names) else 0
    return base + (4 * parameters("1.5b") if any(model_of(name) == "1.5b" for name in names) else 0)


def operations(name: str, trainable: int, documents: int) -> float:
    """The operations of a token: of its products with weights, and of attention within its document."""
    layers, width, *_ = MODELS[model_of(name)]
    embeddings, count = VOCABULARY * width, parameters(model_of(name))
    frozen = not name.endswith("-full")
    products = 4 * (count - embeddings) + 6 * trainable if frozen else 6 * (count - embeddings)
    return products + 6 * layers * width * PACK / documents


def may_begin(began: float, now: float, within: float, share: float = SHARE) -> bool:
    """Whether a measurement still fits into the time, all in seconds."""
    return now - began + share <= within


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


def write_llama(folder: Path, model: str, *, weights: bool) -> None:
    """The config; with weights also a base in bfloat16, drawn on the GPU, where that takes seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, inner, heads, keys, _ = MODELS[model]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        max_position_embeddings=PACK,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    if weights:
        torch.manual_seed(SEED)
        with torch.device("cuda"):
            made = LlamaForCausalLM(config).to(torch.bfloat16)
        made.save_pretrained(folder)


def documents(packs: int, each: int) -> list[list[int]]:
    """Random documents, `each` of them to a pack."""
    import numpy as np

    drawn = np.random.default_rng(SEED).integers(0, VOCABULARY, (packs * each, PACK // each))
    return [[int(token) for token in row] for row in drawn]


def modelwright(folder: Path, model: Path, given: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The trainer `local`, by its step events."""
    from modelwright.core.api import AdapterSettings, TrainSettings
    from modelwright.core.testing.trainer import Recorder, make_job, write_token_folder
    from modelwright.plugins.trainers import modelwright_trainers

    each, recorder = given.documents, Recorder()
    lora = {"adapter": AdapterSettings()} if kind != "full" else {}
    held = {"quantization": "nf4"} if kind == "nf4" else {}
    rows = [(f"row-{number}", ids, [True] * len(ids)) for number, ids in enumerate(documents(given.packs, each))]
    packs = [list(range(start, start + each)) for start in range(0, len(rows), each)]
    settings = TrainSettings(
        max_steps=given.steps,
        batch_size=given.packs,
        micro_batch_size=given.micro,
        preflight=False,  # it would try a checkpoint of all weights
        learning_rate=RATE,
        precision="bfloat16",
        checkpoint_every=10**6,
    )
    job = make_job(
        folder,
        recorder,
        settings,
        model=model,
        tokens=write_token_folder(folder / "train", rows, packs=packs),
        attention=given.attention,
        **lora,
        **held,
    )
    spec = next(spec for spec in modelwright_trainers() if spec.name == "local")
    spec.create(spec.options(gradient_checkpointing=kind != "full")).train(job)
    started, counted = recorder.of("started")[0], recorder.of("step")[WARMUP:]
    return {
        "seconds": sum(step["seconds"] for step in counted) / len(counted),
        "memory": counted[-1]["memory"],
        "parameters": started["parameters"],
        "trainable": started["trainable"],
    }


def trainer(folder: Path, base: Path, given: argparse.Namespace, kind: str) -> dict[str, Any]:
    """transformers' Trainer on the same packs, whose documents it tells apart by their positions."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.manual_seed(SEED)
    same = {"attn_implementation": given.attention}
    if kind == "full":
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.float32, **same)
    else:
        import peft

        if kind == "nf4":
            same["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **same)
        model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        model.enable_input_require_grads()
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
        gradient_checkpointing=kind != "full",
        gradient_checkpointing_kwargs={"use_reentrant": False},
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


def contestant(name: str, folder: Path, model: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One measurement, with the peak that the card reached beside it."""
    side, _, kind = name.partition("-")
    reached = peak()
    measured = (modelwright if side == "modelwright" else trainer)(folder, model, given, kind)
    rate = given.packs * PACK / measured["seconds"]
    counted = operations(name, measured["trainable"], given.documents)
    return measured | {"rate": rate, "peak": reached, "mfu": counted * rate / reached}


def measure(name: str, model: Path, given: argparse.Namespace, seconds: float) -> dict[str, Any] | str:
    """One contestant in a process of its own, in a folder of its own; why there is no figure if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--contestant", name, folder, str(model)]
        for option in ("steps", "packs", "documents", "attention"):
            command += [f"--{option}", str(getattr(given, option))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not done within {seconds:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["?"])[-1][:300]
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def best_attention() -> str:
    """What `local` takes for packs on this GPU; the Trainer gets the same."""
    import importlib.util

    from modelwright.plugins.trainers.model.load import attention_for

    flash = importlib.util.find_spec("flash_attn") is not None
    return attention_for("auto", on_gpu=True, packed=True, flash=flash) or "sdpa"


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser()
    for option, value in (("steps", 10), ("packs", 8), ("documents", 4), ("rounds", 1), ("within", 480)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--attention")
    parser.add_argument("--contestant", nargs=3)
    given = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would take all that it sees
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("gpu_train.py: this machine has no CUDA GPU: run it on one that has; train.py is for the CPU")
    given.attention = given.attention or best_attention()
    if given.contestant:
        name, folder, model = given.contestant
        given.micro = MODELS[model_of(name)][-1]
        print(json.dumps(contestant(name, Path(folder), Path(model), given)))
        return
    free, needed = shutil.disk_usage(tempfile.gettempdir()).free, disk_bytes(given.only)
    if needed > free:
        raise SystemExit(
            f"gpu_train.py: {tempfile.gettempdir()} has {free / 1e9:.0f} GB, and {needed / 1e9:.0f} GB are needed: set "
            "TMPDIR to a folder on another disk"
        )
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {given.attention}; "
        f"{given.documents} documents each"
    )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
    with tempfile.TemporaryDirectory() as bases:
        for model in dict.fromkeys(map(model_of, given.only)):
            write_llama(Path(bases) / model, model, weights=model == "7b")
            torch.cuda.empty_cache()
        for _, name in itertools.product(range(given.rounds), given.only):
            if not may_begin(began, time.monotonic(), given.within):
                print(f"{name}: no time left")
                continue
            left = given.within - (time.monotonic() - began)
            measured = measure(name, Path(bases) / model_of(name), given, left)
            if isinstance(measured, str):
                print(f"{name}: {measured}", flush=True)
            else:
                found[name].append(measured)
    report(found)


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, and ours relative to the Trainer's."""
    rates = {name: statistics.median(each["rate"] for each in rows) for name, rows in found.items() if rows}
    print("| | of the Trainer's | MFU | tokens/s | GB | peak, TFLOP/s |\n|---|---|---|---|---|---|")
    for name, rate in rates.items():
        other = rates.get(name.replace("modelwright", "trainer"))
        mfu, reached = (statistics.median(row[key] for row in found[name]) for key in ("mfu", "peak"))
        print(
            f"| {name} | {f'{rate / other:.2f}' if other else '-'} | {mfu:.3f} | {rate:,.0f} | "
            f"{max(row['memory'] for row in found[name]) / 1e9:.1f} | {reached / 1e12:.0f} |"
        )


if __name__ == "__main__":
    main()
