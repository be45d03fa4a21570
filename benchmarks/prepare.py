"""Preparing data, side by side: `modelwright prepare`, the tokenizer alone, `datasets.map` with a template, and TRL.

python benchmarks/prepare.py GSM8K.jsonl [--megabytes 200] [--rounds 3] [--trl FOLDER]

The rows are those of a file in GSM8K's shape, repeated; a byte-level BPE of 8,192 tokens is trained on them. Each
contestant works in a process of its own, with two processes or threads, and writes what it makes to the disk, but for
the tokenizer alone. The slow ones get a part of the rows: what counts is tokens a second. `--trl` names the folder into
which `pip install --no-deps --target FOLDER trl` has put TRL.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKERS = 2
MAX_LENGTH = 2048
# The parts of the rows that the slow contestants get.
PARTS = {"datasets": 0.1, "trl": 0.1}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RUN = """
name = "bench"
[model]
base = "base"
chat_template = "chatml"
[data]
format = "math"
workers = {workers}
[data.options]
calculator = "keep"
[data.quality]
deduplicate = false
[data.tokens]
max_length = {max_length}
packing = "pack"
[[data.sources]]
path = "{path}"
[train]
max_steps = 1
"""


def make_base(folder: Path, rows: list[dict[str, str]]) -> None:
    """A tokenizer of 8,192 tokens, and the smallest model that fits it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["question"] + "\n" + row["answer"] for row in rows), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=8192, num_attention_heads=1, num_key_value_heads=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


def messages(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def tokenizer_alone(folder: Path) -> tuple[int, float]:
    """Already rendered texts through encode_batch, with the library's own threads: the limit."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "base/tokenizer.json"))
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    rows = map(json.loads, (folder / "rows.jsonl").open())
    texts = ["".join(turn.format(each["role"], each["content"]) for each in messages(row)) for row in rows]
    began, tokens = time.perf_counter(), 0
    for start in range(0, len(texts), 1000):
        batch = tokenizer.encode_batch(texts[start : start + 1000], add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in batch)
    return tokens, time.perf_counter() - began


def datasets_map(folder: Path) -> tuple[int, float]:
    """apply_chat_template with its assistant mask, by datasets.map, to Arrow."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")

    def render(row: dict[str, str]) -> dict[str, list[int]]:
        made = tokenizer.apply_chat_template(
            messages(row), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    rows = load_dataset("json", data_files=str(folder / "part-datasets.jsonl"), split="train")
    done = rows.map(render, num_proc=WORKERS, remove_columns=rows.column_names)
    done.save_to_disk(folder / "saved")
    seconds = time.perf_counter() - began
    return sum(map(len, done["input_ids"])), seconds


def trl(folder: Path) -> tuple[int, float]:
    """What SFTTrainer does with its data before it trains: template, tokens, masks, packs."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    began = time.perf_counter()
    rows = load_dataset("json", data_files=str(folder / "part-trl.jsonl"), split="train")
    rows = rows.map(lambda row: {"messages": messages(row)}, num_proc=WORKERS, remove_columns=rows.column_names)
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        assistant_only_loss=True,
        dataset_num_proc=WORKERS,
        max_length=MAX_LENGTH,
        packing=True,
        report_to=[],
        use_cpu=True,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    seconds = time.perf_counter() - began
    return sum(map(len, trainer.train_dataset["input_ids"])), seconds


def modelwright(folder: Path) -> tuple[int, float]:
    """The command, from the start of its process to its end."""
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    command = [sys.executable, "-m", "modelwright.core", "prepare", "run.toml"]
    began = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=os.environ | {"MODELWRIGHT_HOME": str(home)}, check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    report = json.loads((home / "runs/bench/prepare/report.json").read_text())
    packs = report["packs"]
    print(f"    {packs['packs']:,} packs, {packs['filled']:.2%} of their places filled", file=sys.stderr)
    return report["tokens"], seconds


CONTESTANTS = {"tokenizer": tokenizer_alone, "modelwright": modelwright, "datasets": datasets_map, "trl": trl}


def measure(name: str, folder: Path) -> dict[str, float]:
    """One contestant in a process of its own; its peak of memory is that of its largest process, in MB."""
    command = [sys.executable, __file__, "--contestant", name, str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONWARNINGS": "ignore"}
    environment["TOKENIZERS_PARALLELISM"] = "true" if name == "tokenizer" else "false"
    shutil.rmtree(folder / "hf", ignore_errors=True)  # what datasets has cached costs no work
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    print("".join(line + "\n" for line in done.stderr.splitlines() if line.startswith("    ")), end="")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def write_rows(folder: Path, lines: list[str], megabytes: float) -> int:
    """The rows, repeated, and the parts; gives the bytes."""
    times = max(1, round(megabytes * 1e6 / sum(len(line.encode()) for line in lines)))
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(times):
            file.writelines(lines)
    for name, part in PARTS.items():
        with (folder / f"part-{name}.jsonl").open("w") as file:
            for _ in range(max(1, round(times * part))):
                file.writelines(lines)
    (folder / "run.toml").write_text(RUN.format(workers=WORKERS, max_length=MAX_LENGTH, path="rows.jsonl"))
    return (folder / "rows.jsonl").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path, nargs="?")
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--contestant", nargs=2)
    given = parser.parse_args()
    if given.contestant:
        name, folder = given.contestant
        tokens, seconds = CONTESTANTS[name](Path(folder))
        who = resource.RUSAGE_CHILDREN if name == "modelwright" else resource.RUSAGE_SELF
        peak = resource.getrusage(who).ru_maxrss / 1024
        print(json.dumps({"tokens": tokens, "seconds": seconds, "megabytes": peak}))
        return
    names = [name for name in CONTESTANTS if (name != "trl" or given.trl) and (not given.only or name in given.only)]
    if given.trl:
        os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}:{given.trl}"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        lines = given.rows.read_text(encoding="utf-8").splitlines(keepends=True)
        make_base(folder / "base", [json.loads(line) for line in lines])
        size = write_rows(folder, lines, given.megabytes)
        print(f"{size / 1e6:,.0f} MB")
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(given.rounds):
            for name in names:
                measured = measure(name, folder)
                rates[name].append(measured["tokens"] / measured["seconds"] / 1e6)
                print(
                    f"{name:12} {rates[name][-1]:.3f} M tokens/s ({measured['tokens'] / 1e6:.1f} M in "
                    f"{measured['seconds']:.1f} s), {measured['megabytes']:,.0f} MB",
                    flush=True,
                )
        ours = statistics.median(rates.get("modelwright", [0.0]))
        for name, values in rates.items():
            median, spread = statistics.median(values), f"{min(values):.3f} to {max(values):.3f}"
            print(f"{name:12} modelwright is {ours / median:.2f} of it; median {median:.3f} M tokens/s ({spread})")


if __name__ == "__main__":
    main()
