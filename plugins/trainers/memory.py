"""What a training takes of its machine: the memory it needs before it starts, then its speed and peak memory."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

from modelwright.core.api import ModelwrightError, TrainingMemory, training_memory
from modelwright.core.api.devices import described
from modelwright.plugins.trainers.model.weights import numbers_in
from modelwright.plugins.trainers.ranks import Ranks

# Bytes of a float32 number.
_FULL = 4
# How often the speed of the device is measured again because a step was faster.
_REPEATS = 3


@frozen(kw_only=True)
class Size:
    """The size of a model.

    Attributes:
        parameters: number of parameters; if ZeRO has split them, of all processes together.
        trainable: number of parameters that are trained.
    """

    parameters: int
    trainable: int

    @classmethod
    def of(cls, model: Any) -> Size:
        """The size of a model on any device, also "meta", where the model takes no memory."""
        parameters = list(model.parameters())
        return cls(
            parameters=sum(map(numbers_in, parameters)),
            trainable=sum(numbers_in(parameter) for parameter in parameters if parameter.requires_grad),
        )


def needs(
    size: Size, *, low: bool = False, stage: int = 0, ranks: int = 1, offload: str = "none", frozen: float | None = None
) -> TrainingMemory:
    """What weights, gradients and AdamW take in one process; see `training_memory`."""
    return training_memory(
        size.parameters, size.trainable, low=low, stage=stage, ranks=ranks, offload=offload, frozen=frozen
    )


def frozen_bytes(held: torch.dtype, quantization: str | None) -> float:
    """The bytes that most frozen weights take: 4 bits have scales of 8 bits for each 64 weights."""
    return {"nf4": 0.52, "int8": 1, "fp8": 1}.get(quantization or "", held.itemsize)


def check_memory(
    needed: TrainingMemory,
    device: torch.device,
    *,
    on_machine: int,
    whole: Size | None = None,
    number: int = _FULL,
) -> None:
    """Check that there is enough memory for this process.

    Args:
        needed: by one process.
        device: that it computes on.
        on_machine: number of processes on this machine.
        whole: the size of the model if this process reads all of it before it goes to its device.
        number: bytes of a weight that is read so.

    Raises:
        ModelwrightError: there is not.
    """
    free = free_memory() // on_machine
    host = needed.host + (needed.device if device.type == "cpu" else 0)
    if host > free:
        raise _too_little("this machine", host, free)
    reading = number * whole.parameters if whole else 0
    if reading > free:
        raise ModelwrightError(
            f"not enough memory on this machine: each process reads the whole model ({_gb(reading)}), and "
            f'{_gb(free)} is free for each: set trainer = "deepspeed" and zero_stage = 3 in [train.options], so that '
            "the processes split the model as they read it, or use fewer processes per machine"
        )
    if device.type in ("cuda", "xpu"):
        free, _ = torch.get_device_module(device).mem_get_info(device)
        if needed.device > free:
            raise _too_little(described(device), needed.device, free)


def _too_little(where: str, needed: int, free: int) -> ModelwrightError:
    return ModelwrightError(
        f"not enough memory on {where}: weights, gradients and optimizer take {_gb(needed)} in each process, and "
        f'{_gb(free)} is free for each: train an [adapter], use more processes with trainer = "deepspeed" and '
        "zero_stage = 3 in [train.options], or set offload there"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def free_memory() -> int:
    """Free memory of this machine in bytes, within the limits of its control group."""
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
    """Bytes that a control group counts as used but frees on demand: cached files."""
    facts = group / "memory.stat"
    if not facts.is_file():
        return 0
    names = ("inactive_file ", "total_inactive_file ")
    return sum(int(line.split()[1]) for line in facts.open() if line.startswith(names))


class Meter:
    """Measures speed and memory of one process of a training, and the speed of all of them together.

    MFU (model FLOPs utilization; A. Chowdhery et al., "PaLM", 2022, appendix B) is the model's own arithmetic as a
    share of what the hardware can do: for each token, 6 operations per weight that it is multiplied by, plus
    6 · layers · width · length for causal attention, half of full attention. Recomputed activations do not count. The
    weights of the output layer count for trained tokens only, because it computes no others. A frozen weight under
    an adapter takes 4 operations, because it has no gradient. Of experts, those count that a token is sent to. What the
    hardware can do is measured by multiplying matrices in the same precision; again, if a step is faster, because the
    machine may have been busy. There is no MFU for a step that is still faster than the device.

    Args:
        model: a causal language model of transformers.
        device: its device.
        precision: of its forward pass.
        length: average length of the training documents, in tokens.
        ranks: the processes that train together.
    """

    def __init__(
        self, model: Any, device: torch.device, precision: torch.dtype, *, length: float, ranks: Ranks
    ) -> None:
        self._device = device
        self._length = length
        self._ranks = ranks
        embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
        output = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
        body = [each for each in model.named_parameters() if id(each[1]) not in embeddings | output]
        config = model.config.get_text_config(decoder=True)
        used = _used_experts(config)
        self._counted = [
            (numbers_in(parameter) * (used if ".experts." in name else 1.0), parameter.requires_grad)
            for name, parameter in body
        ]
        head = model.get_output_embeddings().parameters()
        self._output = [(numbers_in(parameter), parameter.requires_grad) for parameter in head]
        self.size = Size.of(model)
        self._attention = 6 * getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
        self._precision = precision
        self._peak = peak_flops(device, precision)
        self._repeats = _REPEATS

    def facts(self) -> dict[str, Any]:
        """The size of the model and the peak speed of the device, for the event `started`."""
        return {**asdict(self.size), "peak_flops": float(f"{self._peak:.4g}")}

    def flops(self, tokens: int, trained_tokens: int) -> float:
        """The operations of a step with this many tokens, of which the output layer computes the trained ones."""
        body = _operations(self._counted) + self._attention * self._length
        return body * tokens + _operations(self._output) * trained_tokens

    def measured(self, tokens: int, trained_tokens: int, began: float) -> dict[str, Any]:
        """Time, MFU and memory for the event `step`; `began` is a time of `time.perf_counter`."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        seconds = time.perf_counter() - began
        facts = {"seconds": round(seconds, 6), "memory": self._memory()}
        reached = self.flops(tokens, trained_tokens) / (seconds * self._ranks.size)
        if reached > self._peak and self._repeats:
            self._repeats -= 1
            self._peak = max(self._peak, peak_flops(self._device, self._precision))
        return facts if reached > self._peak else {**facts, "mfu": float(f"{reached / self._peak:.4g}")}

    def _memory(self) -> int:
        """Peak memory so far, in bytes: of the GPU, or of the process on a CPU."""
        if self._device.type in ("cuda", "xpu"):
            return int(torch.get_device_module(self._device).max_memory_allocated(self._device))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _operations(weights: Sequence[tuple[float, bool]]) -> float:
    return sum(size * (6 if trained else 4) for size, trained in weights)


def _used_experts(config: Any) -> float:
    """The share of its experts that a model sends a token to; 1 if its configuration does not say."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((number for name in names if (number := getattr(config, name, None))), 0)
    return (getattr(config, "num_experts_per_tok", None) or experts) / experts if experts else 1.0


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Operations per second that a device reaches in multiplying square matrices: the best of several attempts."""
    size, repeats = (8192, 5) if device.type != "cpu" else (768, 8)
    one = torch.ones(size, size, device=device, dtype=precision)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        one @ one
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[1:])  # the first one also loads the kernel
