"""How fast a training is, against what its machine could do, and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from attrs import asdict

from modelwright.plugins.trainers.memory import Size, numbers_in
from modelwright.plugins.trainers.ranks import Ranks


class Meter:
    """Measures a process of a training, and from it all of them together.

    MFU (A. Chowdhery et al., "PaLM", 2022, appendix B) is the share of the hardware's arithmetic that the model's own
    takes: for each token 6 operations a weight that it is multiplied with, and causal attention's 6 · layers · width ·
    length, half of what full attention takes. Recomputed activations do not count. The weights of the output layer
    count for supervised tokens, the only ones that it sees. Under an adapter a frozen weight takes 4 operations, for it
    has no gradient. The hardware's arithmetic is measured, by multiplying matrices in the same precision.

    Args:
        model: a causal language model of transformers.
        device: where it is.
        precision: of its forward pass.
        length: of the documents that it is trained on, on average, in tokens.
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
        body = [parameter for parameter in model.parameters() if id(parameter) not in embeddings | output]
        self._counted = [(numbers_in(parameter), parameter.requires_grad) for parameter in body]
        head = model.get_output_embeddings().parameters()
        self._output = [(numbers_in(parameter), parameter.requires_grad) for parameter in head]
        self.size = Size.of(model)
        config = model.config.get_text_config(decoder=True)
        self._attention = 6 * getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
        self._peak = peak_flops(device, precision)

    def facts(self) -> dict[str, Any]:
        """What the event `started` says of the model's size."""
        return {**asdict(self.size), "peak_flops": float(f"{self._peak:.4g}")}

    def flops(self, tokens: int, supervised: int) -> float:
        """The operations of a step with so many tokens, of which the output layer saw the supervised ones."""
        body = _operations(self._counted) + self._attention * self._length
        return body * tokens + _operations(self._output) * supervised

    def measured(self, tokens: int, supervised: int, began: float) -> dict[str, Any]:
        """What the event `step` says of time and memory; `began` is of `time.perf_counter`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - began
        mfu = self.flops(tokens, supervised) / (seconds * self._peak * self._ranks.size)
        return {"seconds": round(seconds, 6), "mfu": float(f"{mfu:.4g}"), "memory": self._memory()}

    def _memory(self) -> int:
        """The most memory so far, in bytes: the device's, or the process's on the CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _operations(weights: list[tuple[int, bool]]) -> int:
    return sum(size * (6 if trained else 4) for size, trained in weights)


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """The operations a second that a device reaches when it multiplies square matrices: the best of a few times."""
    size, repeats = (8192, 5) if device.type == "cuda" else (768, 3)
    one = torch.ones(size, size, device=device, dtype=precision)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        one @ one
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[1:])  # the first one also loads the kernel
