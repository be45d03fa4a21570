"""What a kind of trainer brings to the loop: how one forward pass, one step and one checkpoint are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from modelwright.plugins.trainers.ranks import Ranks


class Strategy(Protocol):
    """How one kind of trainer computes; the loop decides what is computed, and when.

    Attributes:
        model: a causal language model of transformers.
        forward: what is called in its place: the model, or what wraps it.
        device: where its inputs go.
        precision: of its forward pass.
        ranks: the processes that train together.
        layout: how a checkpoint is shared out among them; one with another layout may not load.
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
        """Add the gradient of `loss` (a scalar, this process's part of the step's) to those of the step so far."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip the gradients of all processes together, step, forget them; gives their 2-norm before clipping.

        Where the norm is no finite number, nothing is stepped: weights and optimiser stay as they were.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this process's share of weights and optimiser into a checkpoint's folder."""
        ...

    def load(self, folder: Path, layout: Mapping[str, Any]) -> None:
        """Read what `save` wrote under a `layout`, also back into the strategy that wrote it."""
        ...

    def export(self, folder: Path) -> None:
        """Write config and weights in Hugging Face layout, or the adapter that was trained.

        Every process calls it, the first one writes.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What the event `started` says of the machine: device, precision and the like."""
        ...
