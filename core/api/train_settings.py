"""The tables `[train]` and `[adapter]` of a run file: every key with its default, bounds and documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api.errors import UsageError

# The optimizers that the package bitsandbytes has.
OF_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion")
_positive: Any = validators.gt(0)
# Sequences per step unless the run file sets batch_size.
_USUAL_BATCH = 32


def _auto_or_positive(_instance: Any, attribute: Any, value: int | Literal["auto"]) -> None:
    if value != "auto":
        _positive(_instance, attribute, value)


# More passes than any training takes, and few enough to count their steps.
_passes = validators.and_(validators.gt(0.0), validators.le(1e6))
_share = validators.and_(validators.ge(0.0), validators.le(1.0))
_less_than_all = validators.and_(validators.ge(0.0), validators.lt(1.0))


def _two_decays(_instance: Any, _attribute: Any, value: tuple[float, ...]) -> None:
    if len(value) != 2 or not all(0 <= each < 1 for each in value):
        raise ValueError("must be two numbers from 0 to below 1, such as [0.9, 0.95]")


def _some_targets(_instance: Any, _attribute: Any, value: str | tuple[str, ...]) -> None:
    if not value or not all(value):
        raise ValueError('must not be empty: name layers, such as ["q_proj", "v_proj"], or write "all-linear"')


def _no_empty_names(_instance: Any, _attribute: Any, value: str | tuple[str, ...]) -> None:
    if not all(value):
        raise ValueError('must not have empty names: name layers, such as ["lm_head"]')


def _some_layers(_instance: Any, _attribute: Any, value: tuple[int, ...]) -> None:
    if not value or min(value) < 0:
        raise ValueError("must be numbers of the model's blocks, counted from 0, such as [0, 1, 2]")


def _known_init(_instance: Any, _attribute: Any, value: str) -> None:
    if value == "loftq":
        raise ValueError(
            'cannot be "loftq": peft computes its start on a GPU only, where it was never tried; use "pissa", or '
            '[model] quantization = "nf4" with the default start'
        )
    if not re.fullmatch(r"default|pissa|pissa_niter_[0-9]{1,3}|olora", value):
        raise ValueError('must be "default", "pissa", "pissa_niter_N" with a number N of iterations, or "olora"')


@frozen(kw_only=True)
class TrainSettings:
    """`[train]`: How the model is trained. These keys work with every trainer; `options` has those of one trainer.

    Attributes:
        trainer: Name of the trainer plugin: `"local"` trains in one process, `"deepspeed"` on several GPUs or machines.
        processes: Number of training processes on one machine; `"auto"` starts one per GPU.
        epochs: Passes over the training data; 0.5 is half of it. Give exactly one of `epochs` and `max_steps`.
        max_steps: Number of optimizer steps. Give exactly one of `epochs` and `max_steps`.
        batch_size: Sequences per optimizer step, over all processes; a pack is one sequence. If not set, and
            the data has fewer sequences, every step uses all of them.
        micro_batch_size: Sequences per forward pass of one process; a pack is one sequence. Default: the trainer's
            choice. Lower it if memory runs out.
        learning_rate: Peak learning rate, reached after the warmup. Lower it if the loss jumps or rises.
        optimizer: `"adamw"` keeps 8 bytes of state for each trained weight. The others take less: `"adamw_8bit"` 2, and
            `"paged_adamw_8bit"` moves them to main memory when the GPU is full; `"lion"` 4, with a `learning_rate`
            3 to 10 times lower; `"muon"` 4 for matrices, and may need fewer steps; `"adafactor"` almost none. Those of
            8 bits and Lion need `modelwright[quantization]`.
        betas: Decay of the running means of the gradient and of its square, per step. Lower the second if the loss
            spikes. Default: `[0.9, 0.95]`; for Lion `[0.95, 0.98]`. Not for Adafactor.
        eps: Number added to the root of the mean square before AdamW divides by it. Default: 1e-8. Raise it if updates
            are noisy where gradients are tiny.
        schedule: How the learning rate changes after the warmup: `"cosine"` and `"linear"` fall until the last step,
            `"constant"` stays at the peak, and `"wsd"` stays there until the cooldown, so that a training can be
            prolonged from a checkpoint before it.
        min_rate: Share of the peak learning rate that the schedule falls to. 0.1 is usual for long trainings.
        warmup: Share of the steps in which the learning rate rises linearly from 0 to its peak.
        cooldown: Share of the steps at the end in which `"wsd"` falls.
        weight_decay: Weight decay, applied to matrices only. Raise it against overfitting.
        clip_norm: Maximum 2-norm of the gradient; a larger gradient is scaled down to it. 0 turns clipping off.
        precision: Number format of the forward and backward pass. `"auto"` is bfloat16 on a GPU that supports it,
            float32 otherwise. The optimizer always updates float32 weights.
        gradient_checkpointing: `"on"` computes activations again in the backward pass instead of keeping them. This
            takes less memory and about a third more time; turn it on for a model or a sequence length that does not fit
            otherwise. `"offload"` also keeps what is left in main memory; on a CPU it is the same as `"on"`.
        neftune_noise: Strength of the noise that is added to the embeddings in training (N. Jain et al., "NEFTune",
            2023), which can improve the answers of a model trained on few instructions. 5 is usual; 0 turns it off.
        liger: Replace norms, rotary embeddings and MLPs by Liger's kernels, which take less GPU memory and time. Needs
            an NVIDIA GPU and `pip install liger-kernel`.
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
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "muon", "lion"] = "adamw"
    betas: tuple[float, ...] | None = field(default=None, validator=validators.optional(_two_decays))
    eps: float | None = field(default=None, validator=validators.optional(_positive))
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    min_rate: float = field(default=0.0, validator=_less_than_all)
    warmup: float = field(default=0.03, validator=_share)
    cooldown: float = field(default=0.2, validator=_share)
    weight_decay: float = field(default=0.0, validator=validators.ge(0.0))
    clip_norm: float = field(default=1.0, validator=validators.ge(0.0))
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: Literal["off", "on", "offload"] = "off"
    neftune_noise: float = field(default=0.0, validator=validators.ge(0.0))
    liger: bool = False
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
        if self.betas is not None and self.optimizer == "adafactor":
            yield "betas", "are not for Adafactor, whose decay grows with the steps: remove them"
        if self.eps is not None and self.optimizer in ("adafactor", "lion"):
            yield "eps", f'is not for optimizer = "{self.optimizer}", which has no such number: remove it'
        if self.min_rate and self.schedule == "constant":
            yield "min_rate", 'has no effect with schedule = "constant", which never falls: remove it'
        if self.schedule == "wsd" and self.warmup + self.cooldown > 1:
            yield "cooldown", f"and warmup are more than all steps ({self.cooldown:g} + {self.warmup:g}): lower one"

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
    r"""`[adapter]`: Train a small adapter and leave the model's own weights unchanged.

    A layer W becomes W x + scale · B A x, and only A and B, matrices of low rank, are trained (E. Hu et al., "LoRA:
    Low-Rank Adaptation of Large Language Models", 2021). `targets`, `exclude` and `modules_to_save` take names: the
    last part of a layer's name, such as `"q_proj"`, or several, such as `"mlp.down_proj"`.

    Attributes:
        kind: `"lora"` scales by alpha / rank; `"rslora"` by alpha / √rank, so that the adapter's effect does not fade
            as the rank grows (D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023).
        dora: Also train the length of each row of W, apart from its direction (S. Liu et al., "DoRA: Weight-Decomposed
            Low-Rank Adaptation", 2024). It can learn more at a low rank, and each step takes longer.
        init: Start of A and B. `"default"` is a random A, and B = 0. `"pissa"` starts from the largest singular values
            of W (F. Meng et al., "PiSSA", 2024), `"pissa_niter_4"` computes them faster and approximately, and
            `"olora"` starts from W's QR decomposition (K. Büyükakyüz, "OLoRA", 2024): the loss falls faster at first.
            They are saved as plain LoRA of twice the rank, which fits the unchanged base.
        rank: Rank of A and B. A higher rank can learn more and takes more memory.
        alpha: Strength of the adapter; see `kind` for the scale.
        dropout: Share of the inputs of the adapter that are zeroed in training. Raise it against overfitting.
        lora_plus: Learning rate of B as a multiple of A's (S. Hayou et al., "LoRA+", 2024). 16 is usual, with a lower
            `learning_rate`; 1 trains both at the same rate.
        targets: Layers that get an adapter: names, such as `["q_proj", "v_proj"]`, names of the modules they are in,
            such as `"self_attn"`, regular expressions for whole names, such as `'.*layers\.[0-3]\..*_proj'`, or
            `"all-linear"` for every linear layer and all experts, except the output layer.
        layers: Numbers of the model's blocks that get an adapter, counted from 0. Default: all.
        exclude: Layers of `targets` that get no adapter, named in the same way: `["experts"]` leaves out all experts.
        modules_to_save: Modules that are trained whole and saved with the adapter, such as `["embed_tokens"]`. Use it
            for parts that an adapter cannot change enough.
    """

    kind: Literal["lora", "rslora"] = "lora"
    dora: bool = False
    init: str = field(default="default", validator=_known_init)
    rank: int = field(default=16, validator=_positive)
    alpha: float = field(default=32, validator=_positive)
    dropout: float = field(default=0.0, validator=_less_than_all)
    lora_plus: float = field(default=1.0, validator=validators.ge(1.0))
    targets: str | tuple[str, ...] = field(default="all-linear", validator=_some_targets)
    layers: tuple[int, ...] | None = field(default=None, validator=validators.optional(_some_layers))
    exclude: str | tuple[str, ...] = field(default=(), validator=_no_empty_names)
    modules_to_save: tuple[str, ...] = field(default=(), validator=_no_empty_names)
