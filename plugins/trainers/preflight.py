"""Try everything once before the first step, so that what would fail after hours fails in the first minute."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve

from modelwright.core.api import (
    MemorySettings,
    ModelShape,
    ModelwrightError,
    check_checkpoint_room,
    checkpoint_bytes,
    files,
    training_memory,
)
from modelwright.plugins.trainers.loop import Loop

# Larger checkpoints, in bytes, are not tried: writing them would take longer than the rest.
_LARGEST_TRIED = 8e9
# Relative difference allowed between two computations of one loss: on a GPU, sums have no fixed order.
_SAME = 1e-3


def preflight(loop: Loop, shape: ModelShape, how: MemorySettings) -> None:
    """Try the two longest micro-batches, a step, a held-out micro-batch, and a checkpoint written and read back.

    Afterwards, weights and optimizer are as they were before.

    Args:
        loop: of the training.
        shape: of the model.
        how: it is trained; for the event, which has the memory that was predicted beside the one that was measured.

    Raises:
        ModelwrightError: there is not enough disk space, or loading the checkpoint does not restore the model.
    """
    began = time.perf_counter()
    trainable = loop.meter.trainable
    size = checkpoint_bytes(trainable)
    check_checkpoint_room(loop.job.folder, trainable, loop.settings, holdout=loop.holdout is not None)
    longest = loop.corpus.longest_sequences(2 * loop.plan.batch_size)
    with contextlib.ExitStack() as stack:
        folder, before = None, math.nan
        if size <= _LARGEST_TRIED:
            folder = stack.enter_context(_rehearsal(loop))
            before = loop.mean_loss(loop.corpus, longest[:1])
            loop.strategy.save(folder)
            loop.ranks.wait()
        tokens = loop.rehearse(longest, stepping=folder is not None)
        if loop.holdout is not None and len(loop.holdout.sequences):
            loop.mean_loss(loop.holdout, loop.holdout.longest_sequences(1))
        if folder is not None:
            loop.strategy.load(folder, loop.strategy.layout)
            after = loop.mean_loss(loop.corpus, longest[:1])
            if not math.isclose(before, after, rel_tol=_SAME) and math.isfinite(before):
                raise ModelwrightError(
                    f"loading a checkpoint does not restore the model: its loss was {before:.6f} before and is "
                    f"{after:.6f} after loading, so this trainer cannot resume it: look for buffers that the model "
                    "does not save"
                )
    predicted = training_memory(shape, evolve(how, tokens=tokens))
    facts = {"predicted_memory": predicted.device, "memory": loop.meter.memory(), "micro_batch_tokens": tokens}
    seconds = round(time.perf_counter() - began, 3)
    loop.job.emit("preflight", {"seconds": seconds, "checkpoint_bytes": size, **facts})


@contextlib.contextmanager
def _rehearsal(loop: Loop) -> Iterator[Path]:
    """A temporary folder for a checkpoint."""
    place = files.temporary_name(loop.checkpoints.folder / "rehearsal")
    place = Path(loop.ranks.from_first(str(place)))
    if loop.ranks.first:
        place.mkdir()
    loop.ranks.wait()
    try:
        yield place
        loop.ranks.wait()
    finally:
        if loop.ranks.first:
            shutil.rmtree(place, ignore_errors=True)
