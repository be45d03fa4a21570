"""What a kind of trainer brings to the loop (`Setup` and `Strategy`), and the pieces that the built-in ones share."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from modelwright.core.api import MemorySettings, ModelShape, TrainSettings, UsageError, device_name, has_bfloat16
from modelwright.plugins.trainers.checkpoints import Checkpoint
from modelwright.plugins.trainers.model.weights import compute_in, cpu_has_bfloat16
from modelwright.plugins.trainers.ranks import Ranks


class Setup(Protocol):
    """The processes and devices of one kind of trainer, from which the loop gets a strategy for its model.

    Attributes:
        ranks: the processes that train together.
        device: the device of this process.
        precision: of the forward pass.
        held: the dtype in which weights are read, and frozen ones stay.
        memory: what decides how much a process takes, without the size of a micro-batch.
    """

    ranks: Ranks
    device: torch.device
    precision: torch.dtype
    held: torch.dtype
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


def precisions_of(settings: TrainSettings, dtype: str | None, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """The precision of the forward pass on a device, and what frozen weights are held in; see `compute_in`.

    Args:
        settings: the `[train]` table.
        dtype: `[model] dtype` of a run with an adapter; None if all weights are trained.
        device: that computes.

    Raises:
        UsageError: the device does not have the requested precision.
    """
    supported = has_bfloat16(device)
    native = cpu_has_bfloat16()
    name = "this device" if supported else device_name(device)
    return compute_in(settings.precision, dtype, device=device.type, name=name, supported=supported, native=native)


def name_of(precision: torch.dtype) -> Literal["float32", "bfloat16"]:
    """The precision as settings name it."""
    return "bfloat16" if precision == torch.bfloat16 else "float32"


def device_facts(device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    """Device, precision, and the number of threads on a CPU."""
    facts = {"device": device_name(device), "precision": name_of(precision)}
    return facts | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})


def recompute_activations(model: Any, *, offload: bool) -> None:
    """Keep only the activations between the blocks, and compute the others again in the backward pass.

    Args:
        model: of transformers.
        offload: whether those that are kept wait in the computer's own memory, not in the GPU's.

    Raises:
        UsageError: the model does not support it.
    """
    # transformers renames the method within version 5, and drops the old name in 6.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    more = {"offload": True} if offload else {}
    if more.keys() - inspect.signature(enable).parameters.keys():
        raise UsageError(
            '[train] gradient_checkpointing: "offload" needs a newer transformers (tried with 5.23): set it to "on"'
        )
    try:
        enable({"use_reentrant": False}, **more)
    except ValueError as error:
        raise UsageError(f"[train] gradient_checkpointing: {error}") from error


def without_liger(kind: str, *, device: str, kernels: Collection[str] | None) -> str | None:
    """Why Liger's kernels cannot replace a model's own, as the second half of an error's line; None if they can.

    Args:
        kind: the model's `model_type`.
        device: type of the device that it computes on, such as "cuda".
        kernels: the model types that the installed liger-kernel knows; None if it is not installed.
    """
    if device != "cuda":
        return f"its kernels run on a GPU, and this training computes on {device!r}: remove it"
    if kernels is None:
        return "needs the package liger-kernel: pip install liger-kernel, or remove it"
    if kind not in kernels:
        return f"liger-kernel has no kernels for models of type {kind!r}: remove it"
    return None


def check_liger(kind: str, device: torch.device) -> None:
    """Check that Liger's kernels can replace those of a model of this `model_type`.

    Raises:
        UsageError: they cannot.
    """
    kernels = None
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        kernels = importlib.import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    problem = without_liger(kind, device=device.type, kernels=kernels)
    if problem:
        raise UsageError(f"[train] liger: {problem}")


def use_liger(model: Any) -> None:
    """Replace a model's own kernels by Liger's, but not its loss, which `TrainedLogits` computes."""
    integration = importlib.import_module("transformers.integrations.liger")
    integration.apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
