"""The peak memory of LoRA on a CPU, with the base's weights in bfloat16 or quantized.

python benchmarks/adapter_memory.py [--base FOLDER] [--only NAME …] [--tokens 1024] [--steps 2]

The base has random weights in bfloat16 and the shape of a model of 1.5 billion parameters (28 layers, width 1,536, a
vocabulary of 151,936); `--base` keeps it in a folder, or names another one. Each measurement is a process of its own:
two steps of so many tokens, rank 16 on all linear layers, activations computed again in the backward pass. Its peak is
what the system counts for the process, the pages of the base's file included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4": {"dtype": "bfloat16", "quantization": "nf4"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "fp8": {"dtype": "bfloat16", "quantization": "fp8"},
}
# Bytes beside the weights in bfloat16 times a share.
BARS = {"bfloat16": (1.25, 1.5e9), "nf4": (0.4, 1.5e9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=["bfloat16", "nf4"])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep all activations")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        train(given)
        return
    with tempfile.TemporaryDirectory() as temporary:
        base = given.base or Path(temporary) / "base"
        if not base.exists():
            in_child([__file__, "--one", "base", "--base", str(base)])
        weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        print(f"weights: {weights / 1e9:.2f} GB")
        for name in given.only:
            began = time.perf_counter()
            arguments = ["--tokens", str(given.tokens), "--steps", str(given.steps), *["--keep"] * given.keep]
            found = in_child([__file__, "--one", name, "--base", str(base), *arguments])
            share, more = BARS.get(name, (0.0, 0.0))
            bar = f", bar {(share * weights + more) / 1e9:.2f} GB" if share else ""
            print(f"{name}: peak {found['peak'] / 1e9:.2f} GB{bar}; {time.perf_counter() - began:.0f} s; {found}")


def in_child(arguments: list[str]) -> dict:
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory() -> dict[str, float]:
    """GB in the process: at the peak, and now in memory of its own and in pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    names = {"peak": "VmHWM", "own": "RssAnon", "files": "RssFile"}
    return {name: round(int(lines[key].split()[0]) * 1024 / 1e9, 2) for name, key in names.items()}


def train(given: argparse.Namespace) -> None:
    if given.one == "base":
        write_base(given.base)
        print("{}")
        return
    from modelwright.core.api import AdapterSettings, TrainSettings
    from modelwright.core.testing.trainer import Recorder, make_job, write_token_folder
    from modelwright.plugins.trainers import LocalOptions
    from modelwright.plugins.trainers.local import LocalTrainer

    phases = {}

    def emit(kind: str, data: dict) -> None:
        phases[kind + str(data.get("step", ""))] = memory()
        print(kind, memory(), data.get("seconds", ""), data.get("loss", ""), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        # Two short rows, so that looking for the attention to use, which tries three rows, does not take long.
        rows = [
            (f"row-{number}", [(7 * place + number) % 50000 for place in range(length)], [True] * length)
            for number, length in enumerate((8, 8, given.tokens - 16))
        ]
        write_token_folder(Path(temporary) / "rows", rows)
        precision = NAMES[given.one]["dtype"]
        settings = TrainSettings(max_steps=given.steps, batch_size=3, preflight=False, precision=precision)
        job = make_job(
            Path(temporary) / "job",
            Recorder(),
            settings,
            model=given.base,
            tokens=Path(temporary) / "rows",
            adapter=AdapterSettings(rank=16),
            emit=emit,
            **NAMES[given.one],
        )
        LocalTrainer(LocalOptions(gradient_checkpointing=not given.keep)).train(job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "phases": phases}))


def write_base(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
