"""The trainer `local`: one process, on the CPU or one GPU of any make."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from modelwright.core.api import (
    OPTIMIZER_STATES,
    Accelerators,
    Job,
    MemorySettings,
    ModelShape,
    Quantization,
    Trained,
    TrainSettings,
    UsageError,
    accelerators,
    open_device,
    reading_memory,
)
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.checkpoints import Checkpoint, writing_to
from modelwright.plugins.trainers.memory import check_memory
from modelwright.plugins.trainers.model.adapter import adapter_state, export_adapter, is_adapted, load_adapter_state
from modelwright.plugins.trainers.optimizers import check_optimizer, make_optimizer, set_learning_rate
from modelwright.plugins.trainers.ranks import Ranks
from modelwright.plugins.trainers.strategy import device_facts, name_of, precisions_of
from modelwright.plugins.trainers.training import train


class LocalTrainer:
    """Trains in this process."""

    def __init__(self, options: LocalOptions) -> None:
        self.options = options

    def train(self, job: Job) -> Trained:
        """Train until the job is done or asked to stop; resume from a checkpoint if there is one.

        Raises:
            UsageError: the settings ask for several processes, for a device that is not there, or for a precision that
                it does not have.
            ModelwrightError: model and data do not fit, or the training diverged.
        """
        return train(
            job,
            OneDevice(
                job.settings,
                self.options.device,
                dtype=job.dtype if job.adapter else None,
                quantization=job.quantization,
            ),
            micro_batch_tokens=self.options.micro_batch_tokens,
        )


class OneDevice:
    """This process and its device.

    Args:
        settings: the `[train]` table.
        dtype: what frozen weights are held in; None if all weights are trained.
        quantization: what frozen linear layers are held in.

    Raises:
        UsageError: the settings ask for several processes, for a device that is not there, or for a precision that it
            does not have.
    """

    ranks = Ranks()

    def __init__(
        self,
        settings: TrainSettings,
        device: str = "auto",
        *,
        dtype: str | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        self.device = _device(settings, device, accelerators())
        self.precision, self.held = precisions_of(settings, dtype, self.device)
        check_optimizer(settings, device=self.device.type)
        self._settings = settings
        self.memory = MemorySettings(
            frozen=quantization or name_of(self.held),
            precision=name_of(self.precision),
            states=OPTIMIZER_STATES[settings.optimizer],
        )

    def check(self, shape: ModelShape, newest: Checkpoint | None, *, grows: bool) -> None:  # noqa: ARG002 - it can resume from any of its own
        """Refuse a model that does not fit in memory."""
        reading = reading_memory(shape.parameters, grows=grows, number=self.held.itemsize)
        check_memory(shape, self.memory, self.device, on_machine=1, reading=reading)

    def sharing(self) -> AbstractContextManager[object]:
        """A context that does nothing: there are no other processes."""
        return contextlib.nullcontext()

    def strategy(self, model: Any) -> SingleDevice:
        """On this device alone."""
        return SingleDevice(model, self._settings, device=self.device, precision=self.precision)


class SingleDevice:
    """One device; weights and optimizer states are float32 in any precision of the forward pass."""

    ranks = Ranks()

    def __init__(self, model: Any, settings: TrainSettings, *, device: torch.device, precision: torch.dtype) -> None:
        self.model = self.forward = model.to(device)
        self.device = device
        self.precision = precision
        self.layout: dict[str, Any] = {"strategy": "single-device"}
        self._clip_norm = settings.clip_norm
        self._optimizer = make_optimizer(model, settings)
        if settings.compile:
            # Only the blocks: the output layer sees another number of positions each time.
            model.base_model.compile()

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`."""
        torch.autograd.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Clip by the norm of all gradients together, step, reset the gradients; returns the norm before clipping."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        total = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        norm = float(total)
        if torch.isfinite(total):
            if self._clip_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, total)
            set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """Write `optimizer.pt`, and `model.safetensors` or `adapter.safetensors`."""
        with writing_to(folder), (folder / "optimizer.pt").open("wb") as file:
            if is_adapted(self.model):
                safetensors.torch.save_file(adapter_state(self.model), folder / "adapter.safetensors")
            else:
                safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))
            torch.save(self._optimizer.state_dict(), file)

    def load(self, folder: Path, layout: Mapping[str, Any]) -> None:  # noqa: ARG002 - there is only one
        """Read the files of `save`; the pickle may hold only tensors and plain values."""
        if is_adapted(self.model):
            load_adapter_state(self.model, safetensors.torch.load_file(folder / "adapter.safetensors"))
        else:
            safetensors.torch.load_model(self.model, str(folder / "model.safetensors"), device=str(self.device))
        self._optimizer.load_state_dict(
            torch.load(folder / "optimizer.pt", map_location=self.device, weights_only=True)
        )

    def export(self, folder: Path) -> None:
        """Write config, generation config and safetensors in Hugging Face layout, or the adapter."""
        with writing_to(folder):
            if is_adapted(self.model):
                export_adapter(self.model, folder)
            else:
                self.model.save_pretrained(folder)

    def facts(self) -> dict[str, Any]:
        """Device, precision, and the number of threads on a CPU."""
        return device_facts(self.device, self.precision)


def _device(settings: TrainSettings, requested: str, seen: Accelerators) -> torch.device:
    gpus = seen.count if requested == "auto" else 1
    processes = max(1, gpus) if settings.processes == "auto" else settings.processes
    if processes != 1:
        raise UsageError(
            f"[train] processes asks for {processes} processes, but trainer 'local' runs in one: set processes = 1, or "
            'trainer = "deepspeed"'
        )
    return open_device(requested, seen, "[train.options] device")
