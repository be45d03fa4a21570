"""The trainer `deepspeed`: this process among the others, and the configuration of DeepSpeed."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig

from modelwright.core.api import (
    OPTIMIZER_STATES,
    Job,
    MemorySettings,
    ModelShape,
    ModelwrightError,
    Trained,
    TrainSettings,
    UsageError,
    reading_memory,
    try_device,
)
from modelwright.core.api.wording import one_line
from modelwright.plugins.trainers import DeepSpeedOptions
from modelwright.plugins.trainers.checkpoints import Checkpoint
from modelwright.plugins.trainers.deepspeed.zero import Zero, check_layout
from modelwright.plugins.trainers.memory import check_memory
from modelwright.plugins.trainers.optimizers import WHOLE_MATRICES, check_optimizer
from modelwright.plugins.trainers.ranks import Ranks
from modelwright.plugins.trainers.strategy import name_of, precisions_of
from modelwright.plugins.trainers.training import train

# Numbers in a bucket of gradients or weights that is sent at once: 400 MB in bfloat16, which fill a network. A GPU
# holds about four and a half buckets, and DeepSpeed's default is 5e8.
_BUCKET = 200_000_000


class DeepSpeedTrainer:
    """Trains in this process, started by DeepSpeed's launcher or another one that sets RANK and WORLD_SIZE."""

    def __init__(self, options: DeepSpeedOptions) -> None:
        self.options = options

    def train(self, job: Job) -> Trained:
        """Train until the job is done or asked to stop; resume from a checkpoint if there is one.

        Raises:
            UsageError: the settings ask for something that ZeRO cannot do.
            ModelwrightError: model and data do not fit together, the training diverged, or another process is gone.
        """
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        with _clear_error_for_lost_process():
            return train(job, Processes(job, self.options), micro_batch_tokens=self.options.micro_batch_tokens)


class Processes:
    """This process among those that the launcher started.

    Raises:
        UsageError: this machine has no device for it, or none with the requested precision, or the options contradict
            one another.
    """

    def __init__(self, job: Job, options: DeepSpeedOptions) -> None:
        settings = job.settings
        if job.quantization is not None and options.zero_stage == 3:
            raise UsageError(
                f'[model] quantization = "{job.quantization}" does not work with zero_stage = 3, which splits the '
                "weights as they are read: set zero_stage to 2 or less in [train.options], or remove it"
            )
        self.device = _device()
        self.ranks = _join(self.device)
        dtype = job.dtype if job.adapter else None
        self.precision, self.held = precisions_of(settings, dtype, self.device)
        self._settings, self._options = settings, options
        # Without ZeRO, float32 weights are computed with under autocast, as the trainer `local` does it.
        low = self.precision == torch.bfloat16 and options.zero_stage > 0
        if low:
            if dtype == "float32":
                raise UsageError(
                    "[model] dtype: DeepSpeed holds all weights in the precision of the forward pass: remove it, or "
                    'set [train] precision = "float32" as well'
                )
            self.held = torch.bfloat16  # the engine would convert float32 weights, which take twice as much until then
        check_optimizer(settings, device="cpu" if options.offload != "none" else self.device.type)
        self._config = zero_config(options, settings, precision=self.precision, on_gpu=self.device.type != "cpu")
        self.memory = MemorySettings(
            trained="bfloat16" if low else "float32",
            frozen=job.quantization or name_of(self.held),
            precision=name_of(self.precision),
            gradient=4,
            states=OPTIMIZER_STATES[settings.optimizer],
            stage=options.zero_stage,
            ranks=self.ranks.size,
            offload=options.offload,
        )

    def check(self, shape: ModelShape, newest: Checkpoint | None, *, grows: bool) -> None:
        """Refuse a checkpoint of another ZeRO stage, and a model that does not fit in memory."""
        if newest is not None:
            check_layout(newest.path, newest.layout, self._options, self._settings.optimizer, self.ranks.size)
        reading = reading_memory(
            shape.parameters, stage=self._options.zero_stage, grows=grows, number=self.held.itemsize
        )
        check_memory(shape, self.memory, self.device, on_machine=_on_machine(), reading=reading)

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """A context in which, at stage 3, each process keeps only its share of the weights as they are read."""
        if self._options.zero_stage < 3:
            yield
            return
        # transformers looks for a living object of this class, and splits the weights by its settings.
        settings = HfDeepSpeedConfig(self._config)
        yield
        del settings

    def strategy(self, model: Any) -> Zero:
        """The strategy ZeRO."""
        return Zero(
            model,
            self._settings,
            self._options,
            self._config,
            device=self.device,
            precision=self.precision,
            ranks=self.ranks,
        )


def zero_config(
    options: DeepSpeedOptions, settings: TrainSettings, *, precision: torch.dtype, on_gpu: bool
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`: the trainer's options, and other settings from `config`.

    docs/howto/training.md gives the reason for each value that differs from DeepSpeed's default.

    Args:
        options: of the trainer.
        settings: the `[train]` table.
        precision: of the forward pass.
        on_gpu: whether the processes compute on GPUs.

    Raises:
        UsageError: the options contradict one another, or `config` has a setting that belongs elsewhere.
    """
    for key, problem in options.problems():
        raise UsageError(f"[train.options] {key}: {problem}")
    _check_stage(options.zero_stage, settings)
    low = precision == torch.bfloat16
    stage = options.zero_stage
    zero: dict[str, Any] = {
        "stage": stage,
        # Stages 0 and 1 have nothing to overlap with: their gradients are summed once, after the last backward pass.
        "overlap_comm": on_gpu and stage >= 2,
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
    }
    if options.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if options.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    ours = {
        # DeepSpeed uses these sizes only to count samples: the loop decides how many passes a step has.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.clip_norm,
        "zero_optimization": zero,
        # DeepSpeed does not know these optimizers by name; tests/plugins/trainers cover them.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": low and stage > 0},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
    }
    return _merged(ours, options.config)


def _check_stage(stage: int, settings: TrainSettings) -> None:
    """Refuse what a stage of ZeRO cannot do."""
    if settings.compile and stage == 3:
        raise UsageError(
            "[train] compile = true does not work with zero_stage = 3, which swaps the weights in and out: change one "
            "of them"
        )
    if settings.optimizer in WHOLE_MATRICES and stage:
        raise UsageError(
            f'[train] optimizer: "{settings.optimizer}" needs whole matrices, which zero_stage = {stage} cuts into '
            'pieces: set zero_stage = 0 in [train.options], or optimizer to "adamw", "adamw_8bit" or "lion"'
        )


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        there = merged.get(key)
        merged[key] = _merged(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return merged


def _on_machine() -> int:
    """Number of processes on this machine; torchrun and DeepSpeed's launcher use different variables for it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def _device() -> torch.device:
    accelerator = deepspeed.get_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = accelerator.device_count()
    if local >= count:
        raise UsageError(
            f"[train] processes: this machine has {count} GPUs, and none for process {local + 1}: set it to {count} or "
            'less, or to "auto"'
        )
    accelerator.set_device(local)
    device = torch.device(accelerator.device_name(), local)
    try_device(device, f"process {local + 1} of this machine")
    return device


def _join(device: torch.device) -> Ranks:
    """Connect to the other processes."""
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = "29500"
    if not torch.distributed.is_initialized():
        _without_shared_memory()
        backend = "gloo" if device.type == "cpu" else deepspeed.get_accelerator().communication_backend_name()
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return Ranks.joined()


def _without_shared_memory() -> None:
    """Keep DeepSpeed from building its operation that reduces through shared memory, which training never calls.

    Each process would wait for a compiler, forever if an earlier one was killed during the build; and after a kill,
    69 MB of shared memory per process would stay, until the machine has none left.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


# Parts of the errors that libraries raise when the process at the other end of a connection is gone.
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
# Seconds in which the process that failed first, or the launcher, can report the reason.
_PATIENCE = 5.0


@contextlib.contextmanager
def _clear_error_for_lost_process() -> Iterator[None]:
    """Report clearly that this process only failed because another one is gone."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ModelwrightError) or not any(word in str(error).lower() for word in _LOST):
            raise
        time.sleep(_PATIENCE)
        raise ModelwrightError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost the connection to another process, which "
            "was killed (perhaps out of memory: see dmesg on its machine) or whose machine failed: fix that, then the "
            f"same command resumes from the last checkpoint ({one_line(error)[:160]})"
        ) from error
