"""Packing: several rows in one sequence, so that a batch has little padding.

Best fit decreasing (D. S. Johnson, "Near-optimal bin packing algorithms", 1973), in windows of rows that follow one
another: the longest row first, each into the open pack that it fills best. Lengths are small whole numbers, so the free
space of all open packs is a bit mask, and the best pack is its lowest bit at or above the row's length:

    max_length 8, rows of 5, 4, 3, 2 and 2 tokens

    open packs   free  mask            need  goes to
                       000000000       5     a new pack
    5··· (3)     3     000001000       4     a new pack: no bit at or above 4
    4··· (4)     3, 4  000011000       3     free 3, which is full then
    4··· (4)     4     000010000       2     free 4
    42·· (2)     2     000000100       2     free 2, which is full then
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.tokens import PACKS, TokenFolder
from modelwright.core.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Rows per window: bounds memory, and larger windows do not pack better.
WINDOW = 65_536


@frozen(kw_only=True)
class PackReport:
    """Counts of the packs.

    Attributes:
        packs: the number of packs.
        filled: the fraction of positions in packs that hold a token; 0 without packs.
    """

    packs: int
    filled: float


def write_packs(folder: Path, max_length: int) -> PackReport:
    """Write `packs.arrow` beside the shards of a folder of tokens.

    It is a function of the rows' lengths alone: every row is in one pack, a pack's rows are in their order, and the
    packs in that of their first rows.

    Args:
        folder: what `modelwright.TokenFolder` reads.
        max_length: maximum number of tokens in a pack; no row has more.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        ValueError: a row has more tokens than `max_length`, or none.
    """
    np, pa = require("numpy", what="preparing data"), require("pyarrow", what="preparing data")
    schema = pa.schema([("rows", pa.list_(pa.int64()))])
    count = tokens = first = 0
    with files.writing(folder / PACKS) as sink, pa.ipc.new_file(sink, schema) as writer:
        for lengths in _windows(folder):
            packs = list(pack_window(lengths, max_length))
            ends = np.cumsum([0, *map(len, packs)], dtype=np.int32)
            rows = np.concatenate(packs).astype(np.int64) + first
            column = pa.ListArray.from_arrays(pa.array(ends), pa.array(rows))
            writer.write_batch(pa.record_batch([column], schema=schema))
            count += len(packs)
            tokens += int(lengths.sum(dtype=np.int64))
            first += len(lengths)
    places = count * max_length
    return PackReport(packs=count, filled=tokens / places if places else 0.0)


def _windows(folder: Path) -> Iterator[NDArray[np.int32]]:
    """The lengths of the rows, `WINDOW` at a time, independent of shards."""
    import numpy as np

    waiting = np.zeros(0, np.int32)
    for shard in TokenFolder.each_shard(folder):
        waiting = np.concatenate([waiting, shard.lengths()])
        while len(waiting) >= WINDOW:
            yield waiting[:WINDOW]
            waiting = waiting[WINDOW:]
    if len(waiting):
        yield waiting


def pack_window(lengths: NDArray[np.int32], max_length: int) -> Iterator[Sequence[int]]:
    """Pack the rows of one window.

    No two packs could be one: a pack was opened because its first row fitted into none of those before it, whose free
    space has only shrunk since.

    Args:
        lengths: the rows' tokens, int32 `[rows]`.
        max_length: maximum number of tokens in a pack.

    Yields:
        The rows of each pack, ascending; packs by their first row.

    Raises:
        ValueError: a row has more tokens than `max_length`, or none.
    """
    import numpy as np

    wrong = np.flatnonzero((lengths < 1) | (lengths > max_length))
    if len(wrong):
        raise ValueError(f"row {wrong[0]} has {lengths[wrong[0]]} tokens, and a pack takes 1 to {max_length}")
    packs: list[list[int]] = []
    open_packs: defaultdict[int, list[int]] = defaultdict(list)  # by their free space
    mask = 0  # bit f: some open pack has f places free
    order = np.argsort(-lengths, kind="stable")  # equal lengths in the order of their rows
    for row, need in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = mask >> need
        if fitting:
            free = need + (fitting & -fitting).bit_length() - 1
            pack = open_packs[free].pop()
            if not open_packs[free]:
                mask ^= 1 << free
        else:
            free, pack = max_length, len(packs)
            packs.append([])
        packs[pack].append(row)
        if free > need:
            open_packs[free - need].append(pack)
            mask |= 1 << (free - need)
    yield from sorted(map(sorted, packs))
