"""What a trainer gets and returns: settings, job and outcome; and how much memory and disk space a training needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api.errors import ModelwrightError, UsageError

_positive: Any = validators.gt(0)
# Sequences in a step if the run file does not say how many.
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
    """The `[train]` table of a run.toml, the same for every trainer; the trainer's own settings are `options`.

    Attributes:
        trainer: name of the trainer plugin.
        processes: number of processes on one machine; "auto" starts one for each GPU.
        epochs: number of passes over the data; may be a fraction. Set either `epochs` or `max_steps`.
        max_steps: number of optimizer steps. Set either `epochs` or `max_steps`.
        batch_size: sequences in one optimizer step, over all processes; a pack counts as one sequence. If the data has
            fewer sequences than the default, all of them are one batch.
        micro_batch_size: sequences in one forward pass of one process; a pack counts as one sequence. Lower it if a
            GPU runs out of memory. None lets the trainer choose.
        learning_rate: peak learning rate of the schedule.
        schedule: how the learning rate changes after the warmup: "cosine" and "linear" fall to 0, "constant" stays.
        warmup: share of the steps, 0 to 1, in which the learning rate rises linearly from 0.
        weight_decay: weight decay of AdamW; applied to matrices only.
        clip_norm: clip the gradient to this 2-norm. 0 turns clipping off.
        precision: number format of the forward and backward pass; "auto" chooses bfloat16 if the hardware has it. The
            optimizer updates float32 weights in any case.
        compile: compile the model with `torch.compile`: slower to start, faster steps.
        checkpoint_every: write a checkpoint after this many optimizer steps. Lower it if jobs are stopped often.
        keep_checkpoints: number of newest checkpoints to keep, besides the one with the lowest held-out loss.
        preflight: before the first step, rehearse the longest batches, a step, a measurement and a checkpoint, so that
            a lack of memory or disk space shows at once.
        on_bad_step: what to do if a step's loss or gradient is not finite, or its loss is a spike: "stop" the training,
            or "skip" the step's gradient and go on.
        loss_spike: treat a step as bad if its loss exceeds this multiple of the median of the last 32 steps. 0 turns
            the check off.
        early_stopping: stop after this many held-out evaluations without improvement; the best checkpoint is the
            result. None trains to the end, and the last step is the result.
        options: the trainer's own options, an instance of the `options` class of its spec.
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
            yield "max_steps", "set exactly one of epochs and max_steps"

    def sequences_in_a_step(self, there_are: int) -> int:
        """The batch size for data of this many sequences.

        Raises:
            UsageError: a larger batch is set.
        """
        if self.batch_size > there_are and self.batch_size != _USUAL_BATCH:
            counted = "is 1 sequence" if there_are == 1 else f"are {there_are} sequences"
            raise UsageError(
                f"[train] batch_size is {self.batch_size}, and there {counted} to train on: set it to {there_are} or "
                "less, or leave it out"
            )
        return min(self.batch_size, there_are)


@frozen(kw_only=True)
class AdapterSettings:
    """The `[adapter]` table of a run.toml: train an adapter and leave the model's own weights as they are.

    A layer W becomes W x + scale · B A x, and A and B alone, of low rank, are trained (E. Hu et al., "LoRA: Low-Rank
    Adaptation of Large Language Models", 2021).

    Attributes:
        kind: "lora", or "rslora", which scales by alpha over the square root of the rank, so that large ranks still
            learn (D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
        rank: rank of the low-rank matrices; a higher rank can learn more and takes more memory.
        alpha: the adapter's output is scaled by alpha over rank.
        dropout: dropout probability of the adapter's inputs in training.
        targets: layers to adapt, by the last part of their names, such as "q_proj"; "all-linear" adapts every linear
            layer except the output layer.
    """

    kind: Literal["lora", "rslora"] = "lora"
    rank: int = field(default=16, validator=_positive)
    alpha: float = field(default=32, validator=_positive)
    dropout: float = field(default=0.0, validator=_less_than_all)
    targets: str | tuple[str, ...] = field(default="all-linear", validator=_some_targets)


@frozen(kw_only=True)
class Job:
    """One training job, as every process of it sees it.

    Attributes:
        folder: the trainer's own folder, for checkpoints; it outlives a killed process.
        model: a folder in Hugging Face layout. Without weights, its config is initialized from `seed`.
        output: the folder that the trained model is written to, by `files.writing_folder`.
        tokens: the training tokens (a `TokenFolder`). Where it has packs, a sequence is a pack, and a trainer keeps
            the documents in it apart: none attends to another, and positions restart at 0 in each.
        holdout: tokens held out for the loss curve, where there are any (a `TokenFolder`, packed or not).
        settings: the `[train]` table.
        adapter: the `[adapter]` table; None where the whole model is trained. With one, `output` gets the adapter
            without the model: `adapter_config.json` and `adapter_model.safetensors`, as peft writes them, and the
            model's `config.json`.
        vocabulary: how many tokens the tokenizer can give. A model with fewer rows of embeddings gets that many, the
            new ones beginning as the mean of the old. None leaves them as they are.
        hub: what `model` is called by everyone, `org/name@COMMIT`, where it is of the hub.
        seed: of initialization, order and dropout.
        attention: the attention implementation asked for, "auto" for the trainer's choice.
        trust_remote_code: whether the model may bring code of its own.
        fingerprint: of all that went in; a checkpoint with another one is not resumed.
        emit: writes an event: `emit(kind, data)`. The display shows `started`, `step`, `resumed` and others; events.md
            lists their fields. Other kinds are kept in the file.
        stopping: whether someone asked the run to stop; call it at each step's end and before each micro-batch.
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
        step: number of optimizer steps done.
        steps: number of optimizer steps planned.
        loss: the last step's mean loss over supervised tokens, in nats.
        holdout_loss: the same on the held-out data; None if there is none.
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
