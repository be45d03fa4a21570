"""A process that imports what may fail, hang or end Python, and says what it found: `python -m … WHAT…`.

The answer is one JSON object on standard output. What libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from modelwright.core.api.wording import first_line

# NVIDIA's GPUs compute in bfloat16 from this compute capability on (Ampere); older ones emulate it.
_BFLOAT16_FROM = 8


def torch_facts() -> dict[str, Any]:
    """The build of torch, and the accelerators that it sees."""
    torch: Any = importlib.import_module("torch")
    distributed = torch.distributed
    backends = ("gloo", "nccl", "mpi")
    usable = distributed.is_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "backends": [name for name in backends if usable and getattr(distributed, f"is_{name}_available")()],
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if usable and distributed.is_nccl_available() else None,
        "mps": torch.backends.mps.is_available(),
        **_gpus(torch),
    }


def _gpus(torch: Any) -> dict[str, Any]:
    if torch.version.cuda is None and torch.version.hip is None:
        return {"gpus": [], "why_no_gpu": "this build of torch is for CPUs only"}
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return {"gpus": [], "why_no_gpu": _line(error)}
    return {"gpus": [_gpu(torch, number) for number in range(torch.cuda.device_count())], "why_no_gpu": None}


def _gpu(torch: Any, number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    try:
        free = torch.cuda.mem_get_info(number)[0]
    except RuntimeError:  # another process has it for itself
        free = None
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "free": free,
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": torch.version.hip is not None or properties.major >= _BFLOAT16_FROM,
    }


def deepspeed_facts() -> dict[str, Any]:
    """The version of DeepSpeed, and of each of its ops whether it is built already, or can be when it is needed."""
    deepspeed: Any = importlib.import_module("deepspeed")
    builders: Any = importlib.import_module("deepspeed.ops.op_builder.all_ops").ALL_OPS
    built = importlib.import_module("deepspeed.git_version_info").installed_ops
    accelerator = importlib.import_module("deepspeed.accelerator").get_accelerator()
    return {
        "version": deepspeed.__version__,
        "accelerator": accelerator.device_name(),
        "ops": {
            name: {"prebuilt": bool(built.get(name)), "compatible": _compatible(builder)}
            for name, builder in sorted(builders.items())
            if "NotImplemented" not in type(builder).__name__
        },
    }


def _compatible(builder: Any) -> bool:
    try:
        return bool(builder.is_compatible(verbose=False))
    except Exception:  # noqa: BLE001 - a builder looks for compilers and libraries in its own way
        return False


def flash_attention_facts() -> dict[str, Any]:
    """The version of flash-attn."""
    return {"version": importlib.import_module("flash_attn").__version__}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": torch_facts,
    "deepspeed": deepspeed_facts,
    "flash_attn": flash_attention_facts,
}


def _import(modules: Sequence[str]) -> dict[str, Any]:
    for module in modules:
        importlib.import_module(module)
    return {}


def _called(function: str, arguments: str) -> dict[str, Any]:
    module, _, name = function.partition(":")
    answer: dict[str, Any] = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    return answer


def _line(error: BaseException) -> str:
    """An error on one line, with its type."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def main(what: Sequence[str]) -> None:
    """Say what is found; `what` is one of `PROBES`, modules to import, or `MODULE:FUNCTION` with its arguments."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        try:
            facts = PROBES[what[0]]() if what[0] in PROBES else _called(*what) if ":" in what[0] else _import(what)
        except BaseException as error:  # noqa: BLE001 - a package may also raise SystemExit
            facts = {"error": _line(error)}
        answer.write(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1:])
