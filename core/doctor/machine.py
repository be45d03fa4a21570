"""The facts of this machine, as JSON values. Nothing is imported here that could fail."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from modelwright.core import home
from modelwright.core.doctor.probing import imported, program, version_line
from modelwright.core.doctor.storage import storage_facts

# The packages that decide what can be done here; the first is this one.
PACKAGES = (
    *("modelwright", "torch", "transformers", "tokenizers", "safetensors", "pyarrow", "datasets", "huggingface_hub"),
    *("peft", "deepspeed", "flash-attn", "datasketch", "math-verify", "grpcio", "starlette", "uvicorn"),
)

# Those whose import says more than that they are there.
_PROBED = ("torch", "deepspeed", "flash_attn")
# What the kernel calls the ability to compute in bfloat16: of x86 and of ARM.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}


def machine_facts() -> dict[str, Any]:
    """What this machine has.

    Returns:
        `python`, `packages` (name → version, or None), `system`, `torch`, `deepspeed`, `flash_attn` (None where it is
        not installed, `{"error": …}` where it cannot be imported), `driver`, `build` (what DeepSpeed's ops are compiled
        with), `slurm`, `home`, `hub`.
    """
    asked: dict[str, Callable[[], Any]] = {name: partial(_probed, name) for name in _PROBED}
    asked |= {"driver": _driver, "slurm": slurm_facts, "build": _build}
    with ThreadPoolExecutor(len(asked)) as pool:  # each waits for another process
        waiting = {name: pool.submit(ask) for name, ask in asked.items()}
        found = {name: one.result() for name, one in waiting.items()}
    return {
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": _system(),
        "packages": {name: installed(name) for name in PACKAGES},
        **found,
        "home": storage_facts(home.home()),
        "hub": {"offline": _offline(), "cache": _hub_cache()},
    }


def installed(distribution: str) -> str | None:
    """The version of an installed package; None where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _probed(name: str) -> dict[str, Any] | None:
    try:
        there = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        there = False
    return imported(name) if there else None


def _system() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "usable_cpus": usable,
        "bfloat16": _cpu_bfloat16(),
        "memory": _memory(),
    }


def _cpu_lines(*keys: str) -> list[str]:
    """The values of the first processor's lines of these names in /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return [value.strip() for key, _, value in pairs if key.strip() in keys]


def _cpu() -> str:
    return next(iter(_cpu_lines("model name")), "") or platform.processor() or platform.machine()


def _cpu_bfloat16() -> bool | None:
    flags = _cpu_lines("flags", "Features")
    return bool(_BFLOAT16 & set(flags[0].split())) if flags else None


def _memory() -> int:
    """Bytes, as far as this process may use them: a job's share is less than the machine's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none, or "max"
            continue
    return min(limits)


def _driver() -> dict[str, Any] | None:
    """NVIDIA's driver and the GPUs that it sees, whatever torch does."""
    if shutil.which("nvidia-smi") is None:
        return None
    output, why = program(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader,nounits"])
    if why is not None:
        return {"error": why}
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines() if "," in line]
    return {"version": rows[0][-1] if rows else None, "gpus": [row[0] for row in rows]}


def _build() -> dict[str, Any]:
    """The compilers that torch's extensions, DeepSpeed's ops among them, are built with when they are first used."""
    compiler = os.environ.get("CXX", "c++")
    return {
        "compiler": version_line(compiler, "--version"),
        "ninja": version_line("ninja", "--version"),
        "nvcc": _nvcc(),
    }


def _nvcc() -> str | None:
    if shutil.which("nvcc") is None:
        return None
    output, why = program(["nvcc", "--version"])
    return next((line.strip() for line in output.splitlines() if "release" in line), why)


def slurm_facts() -> dict[str, Any] | None:
    """What Slurm says of its partitions: a row for each kind of node in each; None where its commands are not there."""
    if shutil.which("sbatch") is None:
        return None
    version = version_line("sbatch", "--version")
    output, why = program(["sinfo", "--noheader", "--format=%P|%D|%c|%m|%G|%l|%a"])
    if why is not None:
        return {"version": version, "partitions": [], "error": why}
    rows = [line.split("|") for line in output.splitlines() if line.count("|") == 6]
    return {"version": version, "partitions": list(map(_partition, rows)), "error": None}


def _partition(row: list[str]) -> dict[str, Any]:
    """A line of sinfo: nodes of one kind in one partition; a `+` says that some have more."""
    name, nodes, cpus, memory, gres, time, state = row
    return {
        "name": name.removesuffix("*"),
        "default": name.endswith("*"),
        "nodes": _number(nodes),
        "cpus": _number(cpus),
        "memory": _number(memory) * 2**20,
        "gpus": sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres)),
        "time": time,
        "state": state,
    }


def _number(text: str) -> int:
    return int(text.rstrip("+") or 0)


def _offline() -> bool:
    given = os.environ.get("HF_HUB_OFFLINE", os.environ.get("TRANSFORMERS_OFFLINE", ""))
    return given.upper() in {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads it


def _hub_cache() -> str:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    of_home = Path(os.environ.get("HF_HOME") or default) / "hub"
    return str(Path(os.environ.get("HF_HUB_CACHE") or of_home).expanduser())
