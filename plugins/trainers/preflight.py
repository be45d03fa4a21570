"""Try everything once before the first step: what fails after hours can fail in the first minute."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modelwright.core.api import ModelwrightError, check_checkpoint_room, checkpoint_bytes, files

if TYPE_CHECKING:
    from modelwright.plugins.trainers.loop import Loop

# Checkpoints beyond so many bytes are not tried: writing them takes longer than the rest.
_LARGEST_TRIED = 8e9
# How far two computations of one loss may be apart, relative: on a GPU sums have no fixed order.
_SAME = 1e-3


def preflight(loop: Loop) -> None:
    """The two longest micro-batches forward and back, a step, a held-out micro-batch, a checkpoint written and read.

    Afterwards weights and optimiser are what they were.

    Raises:
        ModelwrightError: there is too little room on the disk, or the checkpoint does not give the model back.
    """
    began = time.perf_counter()
    trainable = loop.meter.size.trainable
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
        loop.rehearse(longest, stepping=folder is not None)
        if loop.holdout is not None and len(loop.holdout.sequences):
            loop.mean_loss(loop.holdout, loop.holdout.longest_sequences(1))
        if folder is not None:
            loop.strategy.load(folder, loop.strategy.layout)
            after = loop.mean_loss(loop.corpus, longest[:1])
            if not math.isclose(before, after, rel_tol=_SAME) and math.isfinite(before):
                raise ModelwrightError(
                    f"a checkpoint does not give the model back: its loss was {before:.6f}, and is {after:.6f} after "
                    "loading: this trainer cannot resume it; look for buffers that the model does not save"
                )
    loop.job.emit("preflight", {"seconds": round(time.perf_counter() - began, 3), "checkpoint_bytes": size})


@contextlib.contextmanager
def _rehearsal(loop: Loop) -> Iterator[Path]:
    """A folder for a checkpoint that goes away again."""
    place = files.temporary_name(loop.checkpoints.folder / "rehearsal")
    place = Path(loop.ranks.told(str(place)))
    if loop.ranks.first:
        place.mkdir()
    loop.ranks.wait()
    try:
        yield place
        loop.ranks.wait()
    finally:
        if loop.ranks.first:
            shutil.rmtree(place, ignore_errors=True)
