"""Try everything once before the first step, so that what would fail after hours fails in the first minute."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from modelwright.core.api import ModelwrightError, files
from modelwright.plugins.trainers.loop import Loop

# Larger checkpoints, in bytes, are not tried: writing them would take longer than the rest.
_LARGEST_TRIED = 8e9
# Relative difference allowed between two computations of one loss: on a GPU, sums have no fixed order.
_SAME = 1e-3
# Bytes of a trained weight in a checkpoint at most: itself, ZeRO's copy of it, and AdamW's two moments, in float32.
_IN_CHECKPOINT = 16


def preflight(loop: Loop) -> None:
    """Try the two longest micro-batches, a step, a held-out micro-batch, and a checkpoint written and read back.

    Afterwards, weights and optimizer are as they were before.

    Raises:
        ModelwrightError: there is not enough disk space, or loading the checkpoint does not restore the model.
    """
    began = time.perf_counter()
    size = _IN_CHECKPOINT * loop.meter.size.trainable
    _check_disk(loop, size)
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
                    f"loading a checkpoint does not restore the model: its loss was {before:.6f} before and is "
                    f"{after:.6f} after loading, so this trainer cannot resume it: look for buffers that the model "
                    "does not save"
                )
    loop.job.emit("preflight", {"seconds": round(time.perf_counter() - began, 3), "checkpoint_bytes": size})


def _check_disk(loop: Loop, size: int) -> None:
    # The checkpoints that are kept, the one being written, and the one with the lowest held-out loss.
    needed = size * (loop.settings.keep_checkpoints + 1 + (loop.holdout is not None))
    free = shutil.disk_usage(loop.job.folder).free
    if needed > free:
        raise ModelwrightError(
            f"{loop.job.folder}: not enough disk space: {loop.settings.keep_checkpoints} checkpoints and the one being "
            f"written take {_bytes(needed)}, and {_bytes(free)} is free: free some space, lower keep_checkpoints in "
            "[train], or set MODELWRIGHT_HOME to a folder on another disk"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


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
