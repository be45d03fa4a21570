"""What a kind of trainer brings to the loop (`Setup` and `Strategy`), and the pieces that the built-in ones share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from modelwright.core.api import MemorySettings, ModelShape, UsageError
from modelwright.plugins.trainers.checkpoints import Checkpoint
from modelwright.plugins.trainers.model.adapter import learning_rate_factor
from modelwright.plugins.trainers.ranks import Ranks

# The second moment forgets faster than Adam's 0.999: the usual choice for language models since T. Brown et al.,
# "Language models are few-shot learners" (2020), appendix B.
_BETAS = (0.9, 0.95)


class Setup(Protocol):
    """The processes and devices of one kind of trainer, from which the loop gets a strategy for its model.

    Attributes:
        ranks: the processes that train together.
        device: the device of this process.
        precision: of the forward pass.
        memory: what decides how much a process takes, without the size of a micro-batch.
    """

    ranks: Ranks
    device: torch.device
    precision: torch.dtype
    memory: MemorySettings

    def check(self, shape: ModelShape, newest: Checkpoint | None, *, grows: bool) -> None:
        """Refuse a training that cannot succeed, before any weights are read.

        Args:
            shape: of the model to be trained.
            newest: the checkpoint to resume from.
            grows: whether its embeddings have to grow after it is read.
        """
        ...

    def sharing(self) -> AbstractContextManager[object]:
        """A context in which the weights of a model that is read are split among the processes, if they train so."""
        ...

    def strategy(self, model: Any) -> Strategy:
        """The strategy that trains the model."""
        ...


class Strategy(Protocol):
    """How one kind of trainer computes a forward pass, a step and a checkpoint; the loop decides which, and when.

    Attributes:
        model: a causal language model of transformers.
        forward: called in its place: the model itself, or the object that wraps it.
        device: the device of its inputs.
        precision: of its forward pass.
        ranks: the processes that train together.
        layout: how a checkpoint is split among them; a checkpoint with another layout may not load.
    """

    model: Any
    forward: Callable[..., Any]
    device: torch.device
    precision: torch.dtype
    ranks: Ranks
    layout: dict[str, Any]

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` (a scalar, this process's share of the step's loss) to the step's gradient."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip the gradients of all processes together, step and reset them; returns their 2-norm before clipping.

        If the norm is not finite, there is no step: weights and optimizer stay as they were.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this process's share of weights and optimizer into a checkpoint's folder."""
        ...

    def load(self, folder: Path, layout: Mapping[str, Any]) -> None:
        """Read a folder that `save` wrote with this `layout`, also into the same strategy."""
        ...

    def export(self, folder: Path) -> None:
        """Write config and weights in Hugging Face layout, or the trained adapter.

        Every process calls this, and the first one writes.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Facts about the machine for the event `started`, such as device and precision."""
        ...


def adamw(model: Any, weight_decay: float) -> torch.optim.AdamW:
    """The optimizer of all trainers, for the parameters that require a gradient; each step sets its learning rate."""
    return torch.optim.AdamW(decay_groups(model, weight_decay), betas=_BETAS, fused=True)


def decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices (also embeddings) decay; norms and biases, which are vectors, do not.

    Each group has a `factor`, by which `set_learning_rate` multiplies the rate.
    """
    groups: dict[tuple[bool, float], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_dimensions(parameter) < 2, learning_rate_factor(model, name)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if vectors else weight_decay, "factor": factor}
        for (vectors, factor), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the rate of a step in all groups of an optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["factor"]


def _dimensions(parameter: torch.Tensor) -> int:
    """The number of dimensions of a parameter; ZeRO-3 leaves a flat remainder and keeps the shape beside it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def precision_of(requested: str, device: torch.device) -> torch.dtype:
    """The precision of the forward pass; "auto" is bfloat16 on a GPU that has it, else float32.

    Raises:
        UsageError: the device does not have the requested precision.
    """
    supported = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "bfloat16" and not supported:
        raise UsageError(
            f'[train] precision: {torch.cuda.get_device_name(device)} has no bfloat16: set it to "float32"'
        )
    low = requested == "bfloat16" or (requested == "auto" and device.type == "cuda")
    return torch.bfloat16 if low and supported else torch.float32


def name_of(precision: torch.dtype) -> Literal["float32", "bfloat16"]:
    """The precision as settings name it."""
    return "bfloat16" if precision == torch.bfloat16 else "float32"


def device_facts(device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    """Device, precision, and the number of threads on a CPU."""
    named = {"precision": name_of(precision)}
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), **named}
    return {"device": "cpu", **named, "threads": torch.get_num_threads()}


def recompute_activations(model: Any) -> None:
    """Keep only the activations between the blocks, and compute the others again in the backward pass.

    Raises:
        UsageError: the model does not support it.
    """
    # transformers renames the method within version 5, and drops the old name in 6.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UsageError(f"[train.options] gradient_checkpointing: {error}") from error
