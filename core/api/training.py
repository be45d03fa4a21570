"""What a trainer gets and returns: settings, job and outcome; and how much memory and disk space a training needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api.errors import ModelwrightError, UsageError

_positive: Any = validators.gt(0)
# Sequences per step unless the run file sets batch_size.
_USUAL_BATCH = 32
# The most bytes that one trained weight takes in a checkpoint: itself, ZeRO's copy of it, and AdamW's two moments, each
# in float32 (S. Rajbhandari et al., "ZeRO", 2020, section 3).
_BYTES_IN_CHECKPOINT = 16
# Bytes of a float32 number; AdamW keeps two of them for each trained weight.
_FLOAT32 = 4
_ADAM = 2 * _FLOAT32


def _auto_or_positive(_instance: Any, attribute: Any, value: int | Literal["auto"]) -> None:
    if value != "auto":
        _positive(_instance, attribute, value)


# More passes than any training takes, and few enough to count their steps.
_passes = validators.and_(validators.gt(0.0), validators.le(1e6))
_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_less_than_all = validators.and_(validators.ge(0.0), validators.lt(1.0))


def _some_targets(_instance: Any, _attribute: Any, value: str | tuple[str, ...]) -> None:
    if not value or not all(value):
        raise ValueError('must not be empty: name layers, such as ["q_proj", "v_proj"], or write "all-linear"')


@frozen(kw_only=True)
class TrainSettings:
    """`[train]`: How the model is trained. The same for every trainer, which may have `options` of its own.

    Attributes:
        trainer: Name of the trainer plugin: `"local"` trains in one process, `"deepspeed"` on several GPUs or machines.
        processes: Number of training processes on one machine; `"auto"` starts one per GPU.
        epochs: Passes over the training data; 0.5 is half of it. Give exactly one of `epochs` and `max_steps`.
        max_steps: Number of optimizer steps. Give exactly one of `epochs` and `max_steps`.
        batch_size: Sequences per optimizer step, over all processes; a pack is one sequence. If not set and there are
            fewer sequences, all of them.
        micro_batch_size: Sequences per forward pass of one process; a pack is one sequence. Default: the trainer's
            choice. Lower it if memory runs out.
        learning_rate: Peak learning rate, reached after the warmup. Lower it if the loss jumps or rises.
        schedule: How the learning rate changes after the warmup: `"cosine"` and `"linear"` fall to 0 at the last step,
            `"constant"` stays at the peak.
        warmup: Share of the steps in which the learning rate rises linearly from 0 to its peak.
        weight_decay: Weight decay of AdamW, applied to matrices only. Raise it against overfitting.
        clip_norm: Maximum 2-norm of the gradient; a larger gradient is scaled down to it. 0 turns clipping off.
        precision: Number format of the forward and backward pass. `"auto"` is bfloat16 on a GPU that supports it,
            float32 otherwise. The optimizer always updates float32 weights.
        compile: Compile the model with `torch.compile`: the first steps are slower, all others faster.
        checkpoint_every: Optimizer steps between checkpoints. A killed training repeats at most this many steps.
        keep_checkpoints: Number of newest checkpoints to keep, in addition to the one with the lowest held-out loss.
        preflight: Before the first step, try the longest batches, a step, a held-out evaluation and a checkpoint, so
            that a lack of memory or disk space shows at once and not hours later.
        on_bad_step: What to do if the loss or gradient of a step is not finite, or the loss is a spike (`loss_spike`):
            `"stop"` the training, or `"skip"` the update of that step and continue.
        loss_spike: Treat a step as bad if its loss exceeds this multiple of the median of the last 32 steps. 0 turns
            the check off; other values must be above 1.
        early_stopping: Stop after this many held-out evaluations without improvement; the best checkpoint is the
            result. By default training runs to the end, and the result is the last step's model.
        options: Options of the trainer.
    """

    trainer: str = "local"
    processes: int | Literal["auto"] = field(default=1, validator=_auto_or_positive)
    epochs: float | None = field(default=None, validator=validators.optional(_passes))
    max_steps: int | None = field(default=None, validator=validators.optional(_positive))
    batch_size: int = field(default=_USUAL_BATCH, validator=_positive)
    micro_batch_size: int | None = field(default=None, validator=validators.optional(_positive))
    learning_rate: float = field(default=1e-4, validator=_positive)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = field(default=0.03, validator=_share)
    weight_decay: float = field(default=0.0, validator=validators.ge(0.0))
    clip_norm: float = field(default=1.0, validator=validators.ge(0.0))
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    checkpoint_every: int = field(default=100, validator=_positive)
    keep_checkpoints: int = field(default=2, validator=_positive)
    preflight: bool = True
    on_bad_step: Literal["stop", "skip"] = "stop"
    loss_spike: float = field(default=0.0, validator=validators.or_(validators.in_((0,)), validators.gt(1.0)))
    early_stopping: int | None = field(default=None, validator=validators.optional(_positive))
    options: Any = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        if (self.epochs is None) == (self.max_steps is None):
            yield "max_steps", "give exactly one of epochs and max_steps"

    def sequences_in_a_step(self, there_are: int) -> int:
        """The batch size when there are this many sequences to train on.

        Raises:
            UsageError: a larger one is configured.
        """
        if self.batch_size > there_are and self.batch_size != _USUAL_BATCH:
            counted = "is 1 sequence" if there_are == 1 else f"are {there_are} sequences"
            raise UsageError(
                f"[train] batch_size is {self.batch_size}, but there {counted} to train on: set it to {there_are} or "
                "less, or remove it"
            )
        return min(self.batch_size, there_are)


@frozen(kw_only=True)
class AdapterSettings:
    """`[adapter]`: Train a small adapter and leave the model's own weights unchanged.

    A layer W becomes W x + scale · B A x, and only A and B, matrices of low rank, are trained (E. Hu et al., "LoRA:
    Low-Rank Adaptation of Large Language Models", 2021).

    Attributes:
        kind: `"lora"` scales by alpha / rank; `"rslora"` by alpha / √rank, so that the adapter's effect does not fade
            as the rank grows (D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
        rank: Rank of A and B. A higher rank can learn more and takes more memory.
        alpha: Strength of the adapter; see `kind` for the scale.
        dropout: Share of the inputs of the adapter that are zeroed in training. Raise it against overfitting.
        targets: Layers that get an adapter: the last parts of their names, such as `["q_proj", "v_proj"]`, or
            `"all-linear"` for every linear layer except the output layer.
    """

    kind: Literal["lora", "rslora"] = "lora"
    rank: int = field(default=16, validator=_positive)
    alpha: float = field(default=32, validator=_positive)
    dropout: float = field(default=0.0, validator=_less_than_all)
    targets: str | tuple[str, ...] = field(default="all-linear", validator=_some_targets)


@frozen(kw_only=True)
class Job:
    """One training job, as each of its processes sees it.

    Attributes:
        folder: The trainer's own folder, for checkpoints. It outlives a killed process.
        model: A folder in Hugging Face layout. If it has no weights, they are initialized from `seed`.
        output: The folder to write the trained model to, with `files.writing_folder`.
        tokens: The training tokens (a `TokenFolder`). If it has packs, a sequence is a pack, and the trainer keeps its
            documents apart: no document attends to another, and positions restart in each.
        holdout: Tokens held out to measure the loss (a `TokenFolder`, packed or not); None if there are none.
        settings: The `[train]` table.
        adapter: The `[adapter]` table; None if the whole model is trained. With it, `output` gets the adapter without
            the model: `adapter_config.json` and `adapter_model.safetensors`, as peft writes them, and the model's
            `config.json`.
        vocabulary: Number of tokens of the tokenizer. A model with fewer rows of embeddings gets that many; the new
            rows start as the mean of the old. None leaves them as they are.
        hub: Public name of `model`, `org/name@COMMIT`, if it is from the hub.
        seed: Seed of initialization, order and dropout.
        attention: The attention implementation to use; "auto" leaves it to the trainer.
        trust_remote_code: Whether the model may run code of its own.
        fingerprint: Of all inputs. A checkpoint with another fingerprint is not resumed.
        emit: Writes an event: `emit(kind, data)`. Progress is shown from `started` {steps, parameters, trainable,
            device}, `step` {step, steps, loss, tokens, seconds, …}, `resumed` {step} and `checkpoint` {step}; other
            kinds are only recorded.
        stopping: Whether someone requested a stop. Call it at the end of each step and before each micro-batch.
    """

    folder: Path
    model: Path
    output: Path
    tokens: Path
    holdout: Path | None
    settings: TrainSettings
    adapter: AdapterSettings | None = None
    vocabulary: int | None = None
    hub: str | None = None
    seed: int
    attention: str = "auto"
    trust_remote_code: bool = False
    fingerprint: str
    emit: Callable[[str, Mapping[str, Any]], None]
    stopping: Callable[[], bool]


@frozen(kw_only=True)
class Trained:
    """How a training job ended.

    Attributes:
        finished: False if it stopped on request, after a checkpoint.
        step: Optimizer steps done.
        steps: Optimizer steps planned.
        loss: The last step's mean loss over trained tokens, in nats.
        holdout_loss: The same on the held-out data, if there is any.
    """

    finished: bool
    step: int
    steps: int
    loss: float | None = None
    holdout_loss: float | None = None


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
    parameters: int, trainable: int, *, low: bool = False, stage: int = 0, ranks: int = 1, offload: str = "none"
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
    """
    number = 2 if low else _FLOAT32
    weights = number * parameters / (ranks if stage == 3 else 1)
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
