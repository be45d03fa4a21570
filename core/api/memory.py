"""How much memory and disk space a training needs, before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.train_settings import TrainSettings

# The most bytes that one trained weight takes in a checkpoint: itself, ZeRO's copy of it, and AdamW's two moments, each
# in float32 (S. Rajbhandari et al., "ZeRO", 2020, section 3).
_BYTES_IN_CHECKPOINT = 16
# Bytes of a float32 number; AdamW keeps two of them for each trained weight.
_FLOAT32 = 4
_ADAM = 2 * _FLOAT32


@frozen(kw_only=True)
class TrainingMemory:
    """Memory of one process for weights, gradients and the optimizer, in bytes.

    Attributes:
        device: on the device that computes.
        host: in the computer's own memory, for what is offloaded to it.
    """

    device: int
    host: int = 0


def training_memory(
    parameters: int,
    trainable: int,
    *,
    low: bool = False,
    stage: int = 0,
    ranks: int = 1,
    offload: str = "none",
    frozen: float | None = None,
) -> TrainingMemory:
    """The memory that weights, gradients and AdamW take in one process, before any activation.

    S. Rajbhandari et al., "ZeRO", 2020, section 3: of a trained weight 4 or 2 bytes are the weight, as many its
    gradient, 12 the optimizer's two moments and its float32 copy. Stage 1 shards the last among the processes, stage 2
    the gradients as well, stage 3 the weights as well.

    Args:
        parameters: number of the model's weights.
        trainable: number of those that are trained.
        low: whether the weights are bfloat16, with a float32 copy of the trained ones.
        stage: ZeRO's stage; 0 without ZeRO.
        ranks: number of processes that share the model.
        offload: "none", "optimizer" or "all".
        frozen: bytes of a weight that is not trained; default: as of the others.
    """
    number = 2 if low else _FLOAT32
    held = number * trainable + (number if frozen is None else frozen) * (parameters - trainable)
    weights = held / (ranks if stage == 3 else 1)
    gradients = number * trainable / (ranks if stage >= 2 else 1)
    # ZeRO steps a copy of its share of the weights, even if these are float32 themselves.
    copy = _FLOAT32 if low or stage else 0
    optimizer = (_ADAM + copy) * trainable / (ranks if stage >= 1 else 1)
    if offload == "all":
        return TrainingMemory(device=round(gradients), host=round(weights + optimizer))
    if offload == "optimizer":
        return TrainingMemory(device=round(weights + gradients), host=round(optimizer))
    return TrainingMemory(device=round(weights + gradients + optimizer))


def checkpoint_bytes(trainable: int) -> int:
    """The most bytes that a checkpoint takes on the disk: weights, ZeRO's copy of them, and AdamW's two moments.

    Args:
        trainable: number of weights that are trained.
    """
    return _BYTES_IN_CHECKPOINT * trainable


def check_checkpoint_room(
    folder: Path, trainable: int, settings: TrainSettings, *, holdout: bool, written: int = 0
) -> None:
    """Check that the disk has room for the checkpoints of a training.

    That is the ones that are kept, the one being written, and with held-out data the one with the lowest loss.

    Args:
        folder: an existing folder on the disk that the checkpoints go to.
        trainable: number of weights that are trained.
        settings: the `[train]` table.
        holdout: whether there is held-out data.
        written: bytes of checkpoints that are there already.

    Raises:
        ModelwrightError: there is too little room.
    """
    needed = checkpoint_bytes(trainable) * (settings.keep_checkpoints + 1 + holdout) - written
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelwrightError(
            f"{folder}: not enough disk space for checkpoints: {settings.keep_checkpoints} kept and one being written "
            f"take {_size(needed)}, and {_size(free)} are free: free some, lower keep_checkpoints in [train], or set "
            "MODELWRIGHT_HOME to a folder on another disk"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
