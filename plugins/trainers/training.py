"""From a job to a trained model: what the trainers of this loop do around it."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve

from modelwright.core.api import Job, ModelShape, ModelwrightError, Trained
from modelwright.core.api.adapters import embedding_rows
from modelwright.plugins.trainers.batches.corpus import Corpus, held_out
from modelwright.plugins.trainers.checkpoints import Checkpoints, read_finished
from modelwright.plugins.trainers.loop import Loop
from modelwright.plugins.trainers.memory import model_shape
from modelwright.plugins.trainers.model.adapter import adapt
from modelwright.plugins.trainers.model.load import check_fits, load_model, skeleton
from modelwright.plugins.trainers.preflight import preflight
from modelwright.plugins.trainers.strategy import Setup, recompute_activations


def train(job: Job, setup: Setup, *, micro_batch_tokens: int, recompute: bool) -> Trained:
    """Train until the job is done or asked to stop; resume from a checkpoint if there is one.

    Args:
        job: what to train.
        setup: of the trainer; each of its processes calls this.
        micro_batch_tokens: maximum number of tokens in a micro-batch if the settings give no size.
        recompute: whether activations are computed again in the backward pass.

    Raises:
        ModelwrightError: model and data do not fit together, something does not suffice, or the training diverged.
    """
    ranks = setup.ranks
    finished: Trained | None = ranks.from_first(read_finished(job) if ranks.first else None)
    if finished is not None:
        return finished
    corpus = Corpus(job.tokens)
    if not len(corpus.sequences):
        raise ModelwrightError(
            f"{job.tokens}: none of its {corpus.skipped} examples has a trained token: check the data, and turns in "
            "[data.tokens]"
        )
    holdout = held_out(job)
    checkpoints = Checkpoints(job, ranks)
    newest = checkpoints.newest()
    shape, grows = _shape(job, setup.device.type)
    setup.check(shape, newest, grows=grows)
    # A process that measures the free memory must not see weights that another one has read already.
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
        loop.start()
        if newest is None and job.settings.preflight:
            how = evolve(setup.memory, checkpointing="on" if recompute else "off")
            preflight(loop, shape, how)
        return loop.run(newest)
    except torch.OutOfMemoryError as error:
        raise ModelwrightError(
            f"{strategy.facts()['device']}: out of memory: set [train] micro_batch_size to 1 or 2, or in "
            f"[train.options] micro_batch_tokens to less than {micro_batch_tokens} or gradient_checkpointing = true"
        ) from error


def _shape(job: Job, device: str) -> tuple[ModelShape, bool]:
    """The sizes of the model to be trained, from its configuration alone, and whether its embeddings have to grow."""
    model = skeleton(job)
    before = embedding_rows(model)
    adapt(model, job)
    return model_shape(model, device), embedding_rows(model) > before


def _model(job: Job, setup: Setup, *, packed: bool) -> Any:
    on_gpu = setup.device.type != "cpu"
    low = on_gpu and setup.precision == torch.bfloat16
    model = load_model(job, on_gpu=on_gpu, packed=packed, low=low, sharing=setup.sharing)
    adapt(model, job)
    return model
