"""What a training must hold in memory before the first activation, and what is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from attrs import frozen

from modelwright.core.api import ModelwrightError

# Bytes of a float32 number; AdamW keeps two of them for each trained weight.
_FULL = 4
_ADAM = 2 * _FULL


@frozen(kw_only=True)
class Needs:
    """Memory of one process for weights, gradients and the optimiser, in bytes.

    Attributes:
        device: on the device that computes.
        host: in the computer's own memory, where the optimiser or the weights are offloaded to it.
    """

    device: int
    host: int = 0


def needs(
    *, parameters: int, trainable: int, low: bool = False, stage: int = 0, ranks: int = 1, offload: str = "none"
) -> Needs:
    """What weights, gradients and AdamW take in one process.

    S. Rajbhandari et al., "ZeRO", 2020, section 3: of a trained weight 4 or 2 bytes are the weight, as many its
    gradient, 12 the optimiser's two moments and its float32 copy. Stage 1 shares out the last among the processes,
    stage 2 the gradients too, stage 3 all.

    Args:
        parameters: of the model.
        trainable: of them.
        low: whether the weights are bfloat16, with a float32 copy of the trained ones.
        stage: of ZeRO.
        ranks: how many processes share.
        offload: "none", "optimizer", or "all".
    """
    number = 2 if low else _FULL
    weights = number * parameters / (ranks if stage == 3 else 1)
    gradients = number * trainable / (ranks if stage >= 2 else 1)
    # ZeRO steps a copy of its share of the weights, even where these are float32 themselves.
    copy = _FULL if low or stage else 0
    optimizer = (_ADAM + copy) * trainable / (ranks if stage >= 1 else 1)
    if offload == "all":
        return Needs(device=round(gradients), host=round(weights + optimizer))
    if offload == "optimizer":
        return Needs(device=round(weights + gradients), host=round(optimizer))
    return Needs(device=round(weights + gradients + optimizer))


def check_memory(needed: Needs, device: torch.device, *, on_machine: int) -> None:
    """Check that this process's share of the memory suffices.

    Args:
        needed: by one process.
        device: that it computes on.
        on_machine: how many processes share this machine.

    Raises:
        ModelwrightError: it does not.
    """
    host = needed.host + (needed.device if device.type == "cpu" else 0)
    free = free_memory() // on_machine
    if host > free:
        raise _too_little("the machine's memory", host, free)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed.device > free:
            raise _too_little(torch.cuda.get_device_name(device), needed.device, free)


def _too_little(where: str, needed: int, free: int) -> ModelwrightError:
    return ModelwrightError(
        f"{where} does not suffice: weights, gradients and optimiser take {needed / 1e9:.1f} GB in each process, and "
        f'{free / 1e9:.1f} GB are free: train an [adapter], take more processes with trainer = "deepspeed" and '
        "zero_stage = 3 in [train.options], or offload there"
    )


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
