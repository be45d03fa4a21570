"""Training, side by side: the trainers, a hand-written loop with the same options, and TRL's SFTTrainer.

python benchmarks/train.py GSM8K.jsonl [--steps 31] [--rounds 3] [--trl FOLDER] [--only NAME …] [--threads 2]

Speed: 1,000 conversations of a file in GSM8K's shape, tokenised once by `modelwright prepare`, so that all train on the
same ids and masks; a Llama of 5 M parameters whose beginning all share; 32 sequences a step on the CPU. Counted are
tokens, padding aside, in the median step after the warm-up. TRL runs at several settings, with the options
that are its best here (no recomputation, batches grouped by length), and its best one in float32 is what the rest is
compared with.

Memory: the peak of a process at a vocabulary of 150,000, against the same model with all its logits. `--memory-tokens`
makes the batch smaller where the logits do not fit: they take 20 GB at 8,192 tokens.

ZeRO: the losses of two processes against those of one, with the same batches, float32.

Each measurement is a process of its own. `--trl` names the folder into which `pip install --no-deps --target FOLDER
trl` has put TRL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH = 32
WARMUP = 3  # steps that are not counted
RATE = 5e-4
SEED = 17
RUN = """
name = "bench"
[model.scratch]
hidden_size = 256
layers = 4
heads = 4
tokenizer = "bpe"
vocab_size = 8192
[data]
format = "math"
[data.quality]
deduplicate = false
[data.tokens]
packing = "bucket"
[[data.sources]]
path = "{path}"
limit = 1000
[train]
max_steps = 1
"""
# The hand-written loop's options: what each name adds to a loop over batches of sequences sorted by their length.
BY_HAND: dict[str, dict[str, Any]] = {
    "hand-sorted": {"trained_only": False},
    "hand-float32": {},
    "hand-bfloat16": {"low": True},
    "hand-bfloat16-compile": {"low": True, "compiled": True},
}
OURS: dict[str, dict[str, Any]] = {
    "modelwright-float32": {"precision": "float32"},
    "modelwright-float32-8": {"precision": "float32", "micro_batch_size": 8},
    "modelwright-bfloat16": {"precision": "bfloat16"},
    "modelwright-bfloat16-compile": {"precision": "bfloat16", "compile": True},
}
TRL: dict[str, dict[str, Any]] = {
    "trl-float32-32": {"bf16": False, "per_device_train_batch_size": 32},
    "trl-float32-8x4": {"bf16": False, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
    "trl-float32-8": {"bf16": False, "per_device_train_batch_size": 8},
    "trl-bfloat16-32": {"bf16": True, "per_device_train_batch_size": 32},
}
# (the minimum, as a multiple of TRL's best in float32, the hand-written loop to be matched)
BARS = {
    "modelwright-float32": (2.9, "hand-float32"),
    "modelwright-bfloat16": (3.5, "hand-bfloat16"),
    "modelwright-bfloat16-compile": (4.5, "hand-bfloat16-compile"),
}


def write_llama(folder: Path, vocabulary: int) -> None:
    """The model with its weights: 5 M parameters with a vocabulary of 8,192."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def tokens_of(folder: Path) -> list[tuple[list[int], list[bool]]]:
    """The ids and masks that `modelwright prepare` has written."""
    from modelwright.core.api import TokenFolder

    rows = TokenFolder(folder / "home/runs/bench/prepare/train")
    return [
        ([int(each) for each in row.input_ids], [bool(each) for each in row.trained])
        for row in map(rows.__getitem__, range(len(rows)))
    ]


def job_and_recorder(folder: Path, *, tokens: Path, model: Path, **settings: Any) -> tuple[Any, Any]:
    """A job for a trainer in a folder of its own, and what keeps its events."""
    from modelwright.core.api import TrainSettings
    from modelwright.core.testing.trainer import Recorder, make_job

    recorder = Recorder()
    values = {"batch_size": BATCH, "learning_rate": RATE, "schedule": "constant", "warmup": 0.0} | settings
    place = Path(tempfile.mkdtemp(dir=folder))
    job = make_job(place, recorder, TrainSettings(checkpoint_every=10**6, **values), tokens=tokens, model=model)
    return job, recorder


def modelwright(name: str, folder: Path, steps: int) -> dict[str, float]:
    """The trainer `local`, by its step events."""
    spec, options = trainer_of("local")
    job, recorder = job_and_recorder(
        folder, tokens=folder / "home/runs/bench/prepare/train", model=folder / "model", max_steps=steps, **OURS[name]
    )
    spec.create(options()).train(job)
    counted = recorder.of("step")[WARMUP:]
    return {"rate": rate((each["tokens"], each["seconds"]) for each in counted), "loss": counted[-1]["loss"]}


def rate(steps: Iterable[tuple[int, float]]) -> float:
    """Tokens a second: the median of the steps, which a neighbour's burst of work moves less than their sum."""
    return statistics.median(tokens / seconds for tokens, seconds in steps)


def trainer_of(name: str) -> tuple[Any, Any]:
    """The spec of a built-in trainer, and the class of its options."""
    from modelwright.plugins.trainers import modelwright_trainers

    spec = next(each for each in modelwright_trainers() if each.name == name)
    return spec, spec.options


def by_hand(name: str, folder: Path, steps: int) -> dict[str, float]:
    """What someone writes who knows what is slow: no Modelwright in it but for reading the tokens."""
    import torch

    options = {"trained_only": True, "low": False, "compiled": False} | BY_HAND[name]
    model, rows = load(folder / "model"), tokens_of(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if options["compiled"]:
        model.model.compile()
    order = shuffled(len(rows), steps * BATCH)
    counted: list[tuple[int, float]] = []
    loss = 0.0
    for step in range(steps):
        began = time.perf_counter()
        batch = [rows[index] for index in order[step * BATCH : (step + 1) * BATCH]]
        batch.sort(key=lambda row: -len(row[0]))
        trained_count, loss = sum(sum(trained[1:]) for _, trained in batch), 0.0
        for start in range(0, BATCH, 8):
            ids, mask, trained = padded(batch[start : start + 8])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options["low"]):
                hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
                targets, chosen = ids[:, 1:], trained[:, 1:]
                if options["trained_only"]:
                    hidden, targets = hidden[chosen], targets[chosen]
                else:
                    hidden, targets = hidden.flatten(0, 1), targets.masked_fill(~chosen, -100).flatten()
                logits = model.lm_head(hidden).float()
                part = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / trained_count
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        counted.append((sum(len(ids) for ids, _ in batch), time.perf_counter() - began))
    return {"rate": rate(counted[WARMUP:]), "loss": loss}


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def shuffled(rows: int, count: int) -> list[int]:
    """`count` numbers of rows: epochs end to end, each in an order of its own."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    return [int(each) for _ in range(-(-count // rows)) for each in rng.permutation(rows)][:count]


def padded(batch: Sequence[tuple[list[int], list[bool]]]) -> tuple[Any, Any, Any]:
    """Ids, attention mask and what is trained, each [sequences, longest]."""
    import torch

    def pad(values: list[Any]) -> Any:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in values], batch_first=True)

    mask = pad([[1] * len(ids) for ids, _ in batch])
    return pad([ids for ids, _ in batch]), mask, pad([trained for _, trained in batch])


def trl(name: str, folder: Path, steps: int) -> dict[str, float]:
    """The small Llama by TRL."""
    return train_by_trl(folder, load(folder / "model"), steps, TRL[name])


def train_by_trl(
    folder: Path, model: Any, steps: int, settings: dict[str, Any], adapter: Any = None
) -> dict[str, float]:
    """SFTTrainer with its own collator, on rows that have their ids and labels already."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = tokens_of(folder)
    labels = [[token if each else -100 for token, each in zip(*row, strict=True)] for row in rows]
    data = Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "labels": labels})
    seen: list[int] = [0]  # tokens, step by step; the last entry is the step that is under way
    ends: list[float] = []

    class Counting(SFTTrainer):  # type: ignore[misc, unused-ignore]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            seen[-1] += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *rest, **more)

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            seen.append(0)

    config = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length",
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        **settings,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "home/runs/bench/prepare/tokenizer")
    Counting(
        model=model,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Clock()],
        peft_config=adapter,
    ).train()
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]  # the first step's are not known
    return {"rate": rate(list(zip(seen[1:], seconds, strict=False))[WARMUP - 1 :])}


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def long_rows(tokens: int) -> list[tuple[str, list[int], list[bool]]]:
    """Sequences of 512 tokens, all of them trained."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    return [
        (f"row-{number}", [int(each) for each in rng.integers(0, 150_000, 512)], [True] * 512)
        for number in range(tokens // 512)
    ]


def memory_of_ours(_name: str, folder: Path, tokens: int) -> dict[str, float]:
    """The trainer's peak; its checkpoint is read and written in the same process."""
    from modelwright.core.testing.trainer import write_token_folder

    spec, options = trainer_of("local")
    written = write_token_folder(folder / f"long-{tokens}", long_rows(tokens))
    settings = {"batch_size": tokens // 512, "max_steps": 2, "precision": "float32"}
    job, _ = job_and_recorder(folder, tokens=written, model=folder / "wide", **settings)
    spec.create(options()).train(job)
    return {"megabytes": megabytes()}


def memory_of_logits(_name: str, folder: Path, tokens: int) -> dict[str, float]:
    """The same two steps with all logits, as transformers' own loss has them."""
    import torch

    model = load(folder / "wide")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    ids = torch.tensor([ids for _, ids, _ in long_rows(tokens)])
    for _ in range(2):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"megabytes": megabytes()}


def zero(_name: str, folder: Path, steps: int) -> dict[str, Any]:
    """The losses of one process, and of two at ZeRO's stages 2 and 3."""
    from modelwright.core.testing.ranks import train_in_ranks

    def losses(recorder: Any) -> list[float]:
        return [each["loss"] for each in recorder.of("step")]

    tokens = {"tokens": folder / "home/runs/bench/prepare/train", "model": folder / "model"}
    settings = {"max_steps": steps, "precision": "float32"}
    spec, options = trainer_of("local")
    job, recorder = job_and_recorder(folder, **tokens, **settings)
    spec.create(options()).train(job)
    alone = losses(recorder)
    found: dict[str, Any] = {"first": alone[0], "last": alone[-1]}
    spec, options = trainer_of("deepspeed")
    for stage in (2, 3):
        job, recorder = job_and_recorder(folder, **tokens, **settings, trainer="deepspeed", processes=2)
        train_in_ranks(spec, options(zero_stage=stage), job, recorder, size=2)
        together = losses(recorder)
        found[f"zero-{stage}"] = max(abs(one - two) for one, two in zip(alone, together, strict=True))
    return found


CONTESTANTS: dict[str, Callable[[str, Path, int], dict[str, Any]]] = {
    **dict.fromkeys(TRL, trl),
    **dict.fromkeys(BY_HAND, by_hand),
    **dict.fromkeys(OURS, modelwright),
    "memory-modelwright": memory_of_ours,
    "memory-logits": memory_of_logits,
    "zero": zero,
}


def measure(name: str, folder: Path, count: int) -> dict[str, Any]:
    """One contestant in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def speeds(names: list[str], folder: Path, given: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            measured = measure(name, folder, given.steps)
            rates[name].append(measured["rate"])
            loss = f", loss {measured['loss']:.3f}" if "loss" in measured else ""
            load_average = os.getloadavg()[0]
            print(f"    {name:30} {rates[name][-1]:7,.0f} tokens/s{loss}, load {load_average:.1f}", flush=True)
    median = {name: statistics.median(values) for name, values in rates.items()}
    best = max((median[name] for name in names if name in TRL and "float32" in name), default=None)
    for name, values in rates.items():
        print(
            f"{of(median[name], best):>6} of TRL's best in float32{bars(name, median)}  {name:30} median "
            f"{median[name]:,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})"
        )


def bars(name: str, median: dict[str, float]) -> str:
    if name not in BARS:
        return ""
    bar, twin = BARS[name]
    return f" (bar {bar}), {of(median[name], median.get(twin))} of {twin} (bar 0.95)"


def of(value: float, other: float | None) -> str:
    return f"{value / other:.2f}" if other else "-"


def others(names: list[str], folder: Path, given: argparse.Namespace) -> Iterator[str]:
    peaks = {name: measure(name, folder, given.memory_tokens)["megabytes"] for name in names if "memory" in name}
    if len(peaks) == 2:
        yield f"{peaks['memory-modelwright'] / peaks['memory-logits']:.2f} of the memory with all logits (bar 0.33)"
    for name, peak in peaks.items():
        yield f"{name}: {peak:,.0f} MB at {given.memory_tokens:,} tokens"
    if "zero" in names:
        found = measure("zero", folder, given.zero_steps)
        for stage in (2, 3):
            yield f"zero-{stage}: {found[f'zero-{stage}']:.1e} apart at most (bar 1e-4)"
        yield f"the loss went from {found['first']:.3f} to {found['last']:.3f} in {given.zero_steps} steps"


def set_environment(folder: Path, threads: int) -> None:
    """What every process of a benchmark shares."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    # Threads that spin while they wait for one which a neighbour has displaced lose most of a busy machine's time.
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE"}
    os.environ |= {"MODELWRIGHT_HOME": str(folder / "home"), "HF_HOME": str(folder / "hf")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=31)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-tokens", type=int, default=8192)
    parser.add_argument("--zero-steps", type=int, default=10)
    parser.add_argument("--trl", type=Path)
    parser.add_argument("--only", nargs="*", default=[], choices=CONTESTANTS)
    parser.add_argument("--contestant", nargs=3)
    given = parser.parse_args()
    if given.contestant:
        name, folder, count = given.contestant
        print(json.dumps(CONTESTANTS[name](name, Path(folder), int(count))))
        return
    names = [name for name in given.only or CONTESTANTS if name not in TRL or given.trl]
    if given.trl:
        os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}:{given.trl}"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "run.toml").write_text(RUN.format(path=given.rows.resolve()))
        set_environment(folder, given.threads)
        prepare = [sys.executable, "-m", "modelwright.core", "prepare", "run.toml"]
        subprocess.run(prepare, cwd=folder, check=True, capture_output=True)
        write_llama(folder / "model", 8192)
        write_llama(folder / "wide", 150_000)
        speeds([name for name in names if "memory" not in name and name != "zero"], folder, given)
        for line in others(names, folder, given):
            print(line, flush=True)


if __name__ == "__main__":
    main()
