"""From a job to a trained model: what the trainers of this loop do around it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from modelwright.core.api import Job, ModelwrightError, Trained, UsageError
from modelwright.plugins.trainers.batches.data import Corpus, held_out
from modelwright.plugins.trainers.checkpoints import Checkpoint, Checkpoints, read_finished
from modelwright.plugins.trainers.loop import Loop
from modelwright.plugins.trainers.memory import Size
from modelwright.plugins.trainers.model.adapter import adapt
from modelwright.plugins.trainers.model.load import check_fits, load_model, skeleton
from modelwright.plugins.trainers.ranks import Ranks
from modelwright.plugins.trainers.strategy import Strategy

# The second moment forgets faster than Adam's 0.999: the usual choice for language models since T. Brown et al.,
# "Language models are few-shot learners" (2020), appendix B.
BETAS = (0.9, 0.95)


class Setup(Protocol):
    """What one kind of trainer brings along.

    Attributes:
        ranks: the processes that train together.
        device: that this one computes on.
        precision: of the forward pass.
    """

    ranks: Ranks
    device: torch.device
    precision: torch.dtype

    def check(self, size: Size, newest: Checkpoint | None) -> None:
        """Refuse what cannot go well, before any weights are read.

        Args:
            size: of the model that will be trained.
            newest: the checkpoint that will be gone on from.
        """
        ...

    def sharing(self) -> AbstractContextManager[object]:
        """While a model is read in this context its weights are shared out, where that is how they are trained."""
        ...

    def strategy(self, model: Any) -> Strategy:
        """How the model is trained."""
        ...


def train(job: Job, setup: Setup, *, micro_batch_tokens: int, recompute: bool) -> Trained:
    """Train until the job is done or asked to stop; go on from a checkpoint where there is one.

    Args:
        job: what to train.
        setup: of the trainer; each of its processes calls this.
        micro_batch_tokens: the most tokens of a micro-batch where the settings give no size.
        recompute: whether activations are computed again in the backward pass.

    Raises:
        ModelwrightError: model and data do not fit, or the training diverged.
    """
    ranks = setup.ranks
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
    setup.check(_size(job), newest)
    # Whoever looks how much memory is free must not see what another one has read already.
    ranks.wait()
    model = _model(job, setup, packed=bool(len(corpus.packed(corpus.sequences))))
    for tokens in (corpus, holdout):
        if tokens is not None:
            check_fits(model, largest_token=tokens.largest_token, longest=tokens.longest, tokens=tokens.path)
    if recompute:
        recompute_activations(model)
    strategy = setup.strategy(model)
    loop = Loop(job, strategy, corpus, checkpoints, holdout=holdout, micro_batch_tokens=micro_batch_tokens)
    try:
        return loop.run(newest)
    except torch.OutOfMemoryError as error:
        raise ModelwrightError(
            f"{strategy.facts()['device']}: its memory does not suffice: set [train] micro_batch_size to 1 or 2, "
            f"or in [train.options] micro_batch_tokens below {micro_batch_tokens} or gradient_checkpointing = true"
        ) from error


def _size(job: Job) -> Size:
    """The size of what will be trained, from the model's configuration alone."""
    model = skeleton(job)
    adapt(model, job)
    return Size.of(model)


def _model(job: Job, setup: Setup, *, packed: bool) -> Any:
    on_gpu = setup.device.type != "cpu"
    low = on_gpu and setup.precision == torch.bfloat16
    model = load_model(job, on_gpu=on_gpu, packed=packed, low=low, sharing=setup.sharing)
    adapt(model, job)
    return model


def decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices (embeddings too) decay; norms and biases, which are vectors, do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in parameters if _dimensions(each) >= 2], "weight_decay": weight_decay},
        {"params": [each for each in parameters if _dimensions(each) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: torch.Tensor) -> int:
    """How many a parameter has; of one that ZeRO-3 has shared out there is but a flat rest here."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


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
