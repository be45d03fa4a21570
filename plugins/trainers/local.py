"""The trainer `local`: one process, on the CPU or one GPU; all weights are trained, or an adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from modelwright.core.api import Job, ModelwrightError, Trained, TrainSettings, UsageError
from modelwright.plugins.trainers import LocalOptions
from modelwright.plugins.trainers.adapter import adapt, adapter_state, export_adapter, load_adapter_state
from modelwright.plugins.trainers.checkpoints import read_finished
from modelwright.plugins.trainers.data import Corpus, held_out
from modelwright.plugins.trainers.loop import Loop
from modelwright.plugins.trainers.model import check_fits, load_model

# The second moment forgets faster than Adam's 0.999: the usual choice for language models since T. Brown et al.,
# "Language models are few-shot learners" (2020), appendix B.
BETAS = (0.9, 0.95)


class LocalTrainer:
    """Trains in this process."""

    def __init__(self, options: LocalOptions) -> None:
        self.options = options

    def train(self, job: Job) -> Trained:
        """Train until the job is done or asked to stop; go on from a checkpoint where there is one.

        Raises:
            UsageError: more processes than one are asked for, or a precision that the device lacks.
            ModelwrightError: model and data do not fit, or the training diverged.
        """
        finished = read_finished(job)
        if finished is not None:
            return finished
        device = _device(job.settings)
        precision = _precision(job.settings, device)
        corpus = Corpus(job.tokens)
        if not len(corpus.sequences):
            raise ModelwrightError(
                f"{job.tokens}: none of its {corpus.skipped} examples has a token to learn: check the data, and turns "
                "in [data.tokens]"
            )
        model = load_model(job)
        adapter = adapt(model, job)
        check_fits(model, largest_token=corpus.largest_token, longest=corpus.longest, tokens=job.tokens)
        holdout = held_out(job)
        if holdout:
            check_fits(model, largest_token=holdout.largest_token, longest=holdout.longest, tokens=holdout.path)
        strategy = SingleDevice(model, job.settings, device=device, precision=precision, adapter=adapter)
        if self.options.gradient_checkpointing:
            _recompute_activations(model)
        try:
            return Loop(job, strategy, corpus, micro_batch_tokens=self.options.micro_batch_tokens).run()
        except torch.OutOfMemoryError as error:
            raise ModelwrightError(
                f"{strategy.facts()['device']}: its memory does not suffice: set [train] micro_batch_size to 1 or 2, "
                f"or in [train.options] micro_batch_tokens below {self.options.micro_batch_tokens} or "
                "gradient_checkpointing = true"
            ) from error


class SingleDevice:
    """AdamW on one device; weights and optimiser states are float32 whatever the precision of the forward pass.

    Args:
        model: of transformers.
        settings: the `[train]` table.
        device: where to train.
        precision: of the forward pass.
        adapter: the `PeftModel` around `model`, where an adapter of it is trained, saved and exported.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainSettings,
        *,
        device: torch.device,
        precision: torch.dtype,
        adapter: Any | None = None,
    ) -> None:
        self.model = model.to(device)
        self._adapter = adapter
        self.device = device
        self.precision = precision
        self._clip_norm = settings.clip_norm
        self._optimizer = torch.optim.AdamW(
            _decay_groups(model, settings.weight_decay), lr=settings.learning_rate, betas=BETAS, fused=True
        )
        if settings.compile:
            # The blocks alone: the output layer sees another number of positions each time.
            model.base_model.compile()

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`."""
        torch.autograd.backward(loss)

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clip by the norm of all gradients together, step, forget the gradients; gives the norm before clipping."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def save(self, folder: Path) -> None:
        """Write `optimizer.pt`, and `model.safetensors` or `adapter.safetensors`."""
        with _writing_to(folder), (folder / "optimizer.pt").open("wb") as file:
            if self._adapter is None:
                safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))
            else:
                safetensors.torch.save_file(adapter_state(self.model), folder / "adapter.safetensors")
            torch.save(self._optimizer.state_dict(), file)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; the pickle may hold tensors and plain values only."""
        if self._adapter is None:
            safetensors.torch.load_model(self.model, str(folder / "model.safetensors"), device=str(self.device))
        else:
            load_adapter_state(self.model, safetensors.torch.load_file(folder / "adapter.safetensors"))
        self._optimizer.load_state_dict(
            torch.load(folder / "optimizer.pt", map_location=self.device, weights_only=True)
        )

    def export(self, folder: Path) -> None:
        """Write config, generation config and safetensors in Hugging Face layout; or the adapter."""
        with _writing_to(folder):
            if self._adapter is None:
                self.model.save_pretrained(folder)
            else:
                export_adapter(self._adapter, folder)

    def facts(self) -> dict[str, Any]:
        """Device, precision, and the threads of a CPU."""
        precision = str(self.precision).removeprefix("torch.")
        if self.device.type == "cuda":
            return {"device": torch.cuda.get_device_name(self.device), "precision": precision}
        return {"device": "cpu", "precision": precision, "threads": torch.get_num_threads()}


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Say that `folder` cannot be written to, where the libraries' own words are "unexpected pos 756544 vs 756432".

    Raises:
        ModelwrightError: it cannot; the disk is full, say.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch hides what the file's write raised behind an error of its own.
        told = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(told, OSError | SafetensorError):
            raise
        raise ModelwrightError(
            f"{folder.parent} cannot be written to: {told}; once it can, the same command goes on"
        ) from error


def _decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices (embeddings too) decay; norms and biases, which are vectors, do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _recompute_activations(model: Any) -> None:
    # transformers gives the method a new name within its version 5, and drops the old one in 6.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UsageError(f"[train.options] gradient_checkpointing: {error}") from error


def _device(settings: TrainSettings) -> torch.device:
    gpus = torch.cuda.device_count()
    processes = max(1, gpus) if settings.processes == "auto" else settings.processes
    if processes != 1:
        raise UsageError(
            f"[train] trainer 'local' is one process, and processes = {settings.processes!r} asks for {processes}: set "
            "processes = 1, or another trainer"
        )
    return torch.device("cuda", 0) if gpus else torch.device("cpu")


def _precision(settings: TrainSettings, device: torch.device) -> torch.dtype:
    supported = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.precision == "bfloat16" and not supported:
        raise UsageError(f"[train] precision: {torch.cuda.get_device_name(device)} has no bfloat16: set it to float32")
    wanted = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted and supported else torch.float32
