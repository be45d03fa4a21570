"""The trainer `deepspeed`: ZeRO over as many processes as there are, on GPUs or CPUs."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig

from modelwright.core.api import Job, ModelwrightError, Trained, TrainSettings, UsageError
from modelwright.plugins.trainers import DeepSpeedOptions
from modelwright.plugins.trainers.checkpoints import Checkpoint
from modelwright.plugins.trainers.deepspeed.config import zero_config
from modelwright.plugins.trainers.deepspeed.zero import Zero, check_layout
from modelwright.plugins.trainers.memory import Size, check_memory, needs
from modelwright.plugins.trainers.ranks import Ranks
from modelwright.plugins.trainers.training import precision_of, train


class DeepSpeedTrainer:
    """Trains in this process, which the DeepSpeed launcher, or another that sets RANK and WORLD_SIZE, started."""

    def __init__(self, options: DeepSpeedOptions) -> None:
        self.options = options

    def train(self, job: Job) -> Trained:
        """Train until the job is done or asked to stop; go on from a checkpoint where there is one.

        Raises:
            UsageError: the settings ask for what ZeRO cannot do.
            ModelwrightError: model and data do not fit, the training diverged, or another process is gone.
        """
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        with _losing_others():
            return train(
                job,
                Processes(job.settings, self.options),
                micro_batch_tokens=self.options.micro_batch_tokens,
                recompute=self.options.gradient_checkpointing,
            )


class Processes:
    """This process among those that the launcher started.

    Raises:
        UsageError: this machine has no device for it, or one that lacks the precision that is asked for; or the options
            contradict one another.
    """

    def __init__(self, settings: TrainSettings, options: DeepSpeedOptions) -> None:
        self.device = _device()
        self.ranks = _join(self.device)
        self.precision = precision_of(settings.precision, self.device)
        self._settings, self._options = settings, options
        self._low = self.precision == torch.bfloat16
        self._config = zero_config(options, settings, low=self._low)

    def check(self, size: Size, newest: Checkpoint | None) -> None:
        """Refuse a checkpoint of another stage, and a model that memory does not suffice for."""
        if newest is not None:
            check_layout(newest.path, newest.layout, self._options)
        needed = needs(
            size, low=self._low, stage=self._options.zero_stage, ranks=self.ranks.size, offload=self._options.offload
        )
        whole = size if self._options.zero_stage < 3 else None
        check_memory(needed, self.device, on_machine=_on_machine(), whole=whole)

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """At stage 3 each process keeps its share of what the first one reads; else each of them reads the whole."""
        if self._options.zero_stage < 3:
            yield
            return
        # transformers asks for the settings while an object like this lives, and shares out by them.
        settings = HfDeepSpeedConfig(self._config)
        yield
        del settings

    def strategy(self, model: Any) -> Zero:
        """ZeRO."""
        return Zero(
            model,
            self._settings,
            self._options,
            self._config,
            device=self.device,
            precision=self.precision,
            ranks=self.ranks,
        )


def _on_machine() -> int:
    """How many of the processes are on this machine; torchrun and the DeepSpeed launcher name it differently."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def _device() -> torch.device:
    accelerator = deepspeed.get_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = accelerator.device_count()
    if local >= count:
        raise UsageError(
            f"[train] processes: this machine has {count} GPUs, and process {local + 1} of it has none: set it to "
            f'{count} or less, or to "auto"'
        )
    accelerator.set_device(local)
    return torch.device(accelerator.device_name(), local)


def _join(device: torch.device) -> Ranks:
    """Meet the other processes."""
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

    Each process would wait for a compiler, for ever where an earlier one was killed while it built; and 69 MB of shared
    memory a process would stay after a kill, until the machine has none.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


# What is left of a connection when the process at its other end is gone.
_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
# So long whoever failed first, or the launcher, has to tell the reason.
_PATIENCE = 5.0


@contextlib.contextmanager
def _losing_others() -> Iterator[None]:
    """Say so where a process only failed because another one is gone."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ModelwrightError) or not any(word in str(error).lower() for word in _LOST):
            raise
        time.sleep(_PATIENCE)
        raise ModelwrightError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost another one, which was killed or whose "
            "machine is gone (out of memory, perhaps: see dmesg there); once that is mended the same command goes on "
            f"from the last checkpoint ({' '.join(str(error).split())[:160]})"
        ) from error
