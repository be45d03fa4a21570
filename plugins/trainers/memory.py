"""What a training must hold in memory before the first activation, and what is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from modelwright.core.api import ModelwrightError, TrainingMemory, training_memory

# Bytes of a float32 number.
_FULL = 4


@frozen(kw_only=True)
class Size:
    """How many numbers a model has.

    Attributes:
        parameters: all of them; of weights that ZeRO has shared out, in all processes together.
        trainable: those that are trained.
    """

    parameters: int
    trainable: int

    @classmethod
    def of(cls, model: Any) -> Size:
        """The size of a model, whatever device it is on; on "meta" it takes no memory to ask."""
        parameters = list(model.parameters())
        return cls(
            parameters=sum(map(numbers_in, parameters)),
            trainable=sum(numbers_in(parameter) for parameter in parameters if parameter.requires_grad),
        )


def numbers_in(parameter: torch.Tensor) -> int:
    """How many numbers a parameter has; of one that ZeRO-3 has shared out, in all processes together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def needs(size: Size, *, low: bool = False, stage: int = 0, ranks: int = 1, offload: str = "none") -> TrainingMemory:
    """What weights, gradients and AdamW take in one process; see `training_memory`."""
    return training_memory(size.parameters, size.trainable, low=low, stage=stage, ranks=ranks, offload=offload)


def check_memory(needed: TrainingMemory, device: torch.device, *, on_machine: int, whole: Size | None = None) -> None:
    """Check that this process's share of the memory suffices.

    Args:
        needed: by one process.
        device: that it computes on.
        on_machine: how many processes share this machine.
        whole: of a model that this process reads whole, in float32, before it goes to its device.

    Raises:
        ModelwrightError: it does not.
    """
    free = free_memory() // on_machine
    host = needed.host + (needed.device if device.type == "cpu" else 0)
    if host > free:
        raise _too_little("the machine's memory", host, free)
    reading = _FULL * whole.parameters if whole else 0
    if reading > free:
        raise ModelwrightError(
            f"the machine's memory does not suffice: each process reads the whole model, which takes {_gb(reading)}, "
            f'and {_gb(free)} are free: with trainer = "deepspeed" and zero_stage = 3 in [train.options] it is shared '
            "out as it is read; or take fewer processes on each machine"
        )
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed.device > free:
            raise _too_little(torch.cuda.get_device_name(device), needed.device, free)


def _too_little(where: str, needed: int, free: int) -> ModelwrightError:
    return ModelwrightError(
        f"{where} does not suffice: weights, gradients and optimiser take {_gb(needed)} in each process, and "
        f'{_gb(free)} are free: train an [adapter], take more processes with trainer = "deepspeed" and '
        "zero_stage = 3 in [train.options], or offload there"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def free_memory() -> int:
    """The bytes that this machine can give, within the limits of its control group."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_PHYS_PAGES")
    facts = Path("/proc/meminfo")
    if facts.is_file():
        free = next(int(line.split()[1]) * 1024 for line in facts.open() if line.startswith("MemAvailable:"))
    return min([free, *_limits()])


def _limits() -> Iterator[int]:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        root = Path("/sys/fs/cgroup")
        if (root / limit).is_file() and (root / used).is_file():
            text = (root / limit).read_text().strip()
            if text != "max":
                yield max(0, int(text) - int((root / used).read_text()) + _reclaimable((root / used).parent))


def _reclaimable(group: Path) -> int:
    """What a control group counts as used and gives back when asked: files that were read, in bytes."""
    facts = group / "memory.stat"
    if not facts.is_file():
        return 0
    names = ("inactive_file ", "total_inactive_file ")
    return sum(int(line.split()[1]) for line in facts.open() if line.startswith(names))
