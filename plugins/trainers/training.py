"""From a job to a trained model: what the trainers of this loop do around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from modelwright.core.api import Job, ModelwrightError, Trained, UsageError
from modelwright.plugins.trainers.adapter import adapt
from modelwright.plugins.trainers.checkpoints import Checkpoint, Checkpoints, read_finished
from modelwright.plugins.trainers.data import Corpus, held_out
from modelwright.plugins.trainers.loop import Loop, Strategy
from modelwright.plugins.trainers.model import check_fits, load_model
from modelwright.plugins.trainers.ranks import Ranks

# The second moment forgets faster than Adam's 0.999: the usual choice for language models since T. Brown et al.,
# "Language models are few-shot learners" (2020), appendix B.
BETAS = (0.9, 0.95)

# Makes the strategy, given the model and the checkpoint that it will load.
MakeStrategy = Callable[[Any, Checkpoint | None], Strategy]


def train(
    job: Job, ranks: Ranks, make: MakeStrategy, *, device: torch.device, micro_batch_tokens: int, recompute: bool
) -> Trained:
    """Train until the job is done or asked to stop; go on from a checkpoint where there is one.

    Args:
        job: what to train.
        ranks: the processes that train together; each of them calls this.
        make: makes the strategy.
        device: that it computes on.
        micro_batch_tokens: the most tokens of a micro-batch where the settings give no size.
        recompute: whether activations are computed again in the backward pass.

    Raises:
        ModelwrightError: model and data do not fit, or the training diverged.
    """
    finished: Trained | None = ranks.told(read_finished(job) if ranks.first else None)
    if finished is not None:
        return finished
    corpus = Corpus(job.tokens)
    if not len(corpus.sequences):
        raise ModelwrightError(
            f"{job.tokens}: none of its {corpus.skipped} examples has a token to learn: check the data, and turns "
            "in [data.tokens]"
        )
    holdout = held_out(job)
    checkpoints = Checkpoints(job, ranks)
    newest = checkpoints.newest()
    packed = bool(len(corpus.packed(corpus.sequences)))
    low = device.type != "cpu" and precision_of(job.settings.precision, device) == torch.bfloat16
    model = load_model(job, on_gpu=device.type != "cpu", packed=packed, low=low)
    adapt(model, job)
    for tokens in (corpus, holdout):
        if tokens is not None:
            check_fits(model, largest_token=tokens.largest_token, longest=tokens.longest, tokens=tokens.path)
    if recompute:
        recompute_activations(model)
    strategy = make(model, newest)
    loop = Loop(job, strategy, corpus, checkpoints, holdout=holdout, micro_batch_tokens=micro_batch_tokens)
    try:
        return loop.run(newest)
    except torch.OutOfMemoryError as error:
        raise ModelwrightError(
            f"{strategy.facts()['device']}: its memory does not suffice: set [train] micro_batch_size to 1 or 2, "
            f"or in [train.options] micro_batch_tokens below {micro_batch_tokens} or gradient_checkpointing = true"
        ) from error


def decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices (embeddings too) decay; norms and biases, which are vectors, do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def precision_of(wanted: str, device: torch.device) -> torch.dtype:
    """The precision of the forward pass: what the settings want, bfloat16 on a GPU that has it where they leave it.

    Raises:
        UsageError: the device lacks what is wanted.
    """
    supported = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bfloat16" and not supported:
        raise UsageError(f"[train] precision: {torch.cuda.get_device_name(device)} has no bfloat16: set it to float32")
    low = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    return torch.bfloat16 if low and supported else torch.float32


def device_facts(device: torch.device, precision: torch.dtype) -> dict[str, Any]:
    """Device, precision, and the threads of a CPU."""
    named = {"precision": str(precision).removeprefix("torch.")}
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), **named}
    return {"device": "cpu", **named, "threads": torch.get_num_threads()}


def recompute_activations(model: Any) -> None:
    """Keep no activations but those between the blocks.

    Raises:
        UsageError: the model cannot.
    """
    # transformers gives the method a new name within its version 5, and drops the old one in 6.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UsageError(f"[train.options] gradient_checkpointing: {error}") from error
