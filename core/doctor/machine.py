"""The facts of this machine, as JSON values.

Nothing that could fail is imported here: other processes and programs answer, and none of them can end this one or
keep it waiting for long.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.files import why_no_folder
from modelwright.core.api.free_memory import machine_memory

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
    probes: dict[str, Callable[[], Any]] = {name: partial(_probed, name) for name in _PROBED}
    probes |= {"driver": _driver, "slurm": slurm_facts, "build": _build}
    with ThreadPoolExecutor(len(probes)) as pool:  # each waits for another process
        waiting = {name: pool.submit(ask) for name, ask in probes.items()}
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
    memory = machine_memory()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "usable_cpus": usable,
        "bfloat16": _cpu_bfloat16(),
        "memory": memory.usable,
        "built_in_memory": memory.machine,
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


def _driver() -> dict[str, Any] | None:
    """NVIDIA's driver and the GPUs that it sees, independent of torch."""
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


# A first import from a shared file system that is busy takes minutes.
IMPORT_WITHIN = 180.0
PROGRAM_WITHIN = 20.0


def imported(*what: str, within: float = IMPORT_WITHIN) -> dict[str, Any]:
    """What `probe` says of a package or of modules; `{"error": …}` where one cannot be imported.

    Args:
        what: see `probe.main`.
        within: seconds.
    """
    command = [sys.executable, "-P", "-m", "modelwright.core.doctor.probe", *what]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=within, check=False, env=os.environ
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing it takes longer than {within:.0f} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return {"error": f"importing it makes Python end ({_ending(done.returncode)}{f'; {said[-1]}' if said else ''})"}
    return answer


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def program(command: Sequence[str]) -> tuple[str, str | None]:
    """What a program prints, and why it failed; None where it did not.

    The program must be on the path; see `shutil.which`.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROGRAM_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} does not answer within {PROGRAM_WITHIN:.0f} s"
    except OSError as error:
        return "", f"cannot start {command[0]}: {error.strerror}"
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        return output, None
    said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return output, said[-1] if said else f"{command[0]} ended with {_ending(done.returncode)}"


def version_line(name: str, *arguments: str) -> str | None:
    """The first line of a program's version; None if it is not on the path."""
    if shutil.which(name) is None:
        return None
    output, why = program([name, *arguments])
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[0] if lines else f"does not work: {why}"


# Mount options by which a shared file system keeps each machine's locks to itself.
_ALONE = {"localflock", "nolock", "local_lock=flock", "local_lock=all"}


def storage_facts(folder: Path) -> dict[str, Any]:
    """What holds of a folder, which need not be there yet.

    Returns:
        `path`, `total` and `free` (bytes), `file_system`; `locks`: "yes", "this machine only" (a shared file system
        whose other machines do not see them), or why there are none; `problem`: why nothing can be written there, or
        None.
    """
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    kind, options = _mount(there)
    problem = why_no_folder(folder)
    usage = shutil.disk_usage(there)
    return {
        "path": str(folder),
        "total": usage.total,
        "free": usage.free,
        "file_system": kind,
        "locks": "unknown" if problem else _locks(there, options),
        "problem": problem,
    }


def _mount(folder: Path) -> tuple[str | None, set[str]]:
    """The kind of the file system that a folder is on, and how it is mounted (proc(5), mountinfo)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None, set()
    real = Path(os.path.realpath(folder))
    best: tuple[int, str | None, set[str]] = (-1, None, set())
    for line in lines:
        before, _, after = line.partition(" - ")
        _, _, _, _, place, here, *_ = before.split()
        kind, _, options = after.split()[:3]
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place)  # a space is \040
        if real.is_relative_to(place) and len(place) >= best[0]:
            best = len(place), kind, {*here.split(","), *options.split(",")}
    return best[1], best[2]


def _locks(folder: Path, options: set[str]) -> str:
    path = files.temporary_name(folder / "locks")
    try:
        with path.open("a+b") as one, path.open("a+b") as other:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return "this machine only" if options & _ALONE else "yes"
            return "two processes get the same one"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        path.unlink(missing_ok=True)
