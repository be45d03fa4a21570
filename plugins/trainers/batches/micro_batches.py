"""Micro-batches: which sequences go through the model together, and the tensors that they become.

A sequence is a row, or a pack of several rows; the rows in it are its documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from attrs import asdict, frozen
from numpy.typing import NDArray

from modelwright.core.api import TokenRow

# Numbers of sequences: of packs where the folder has them, else of rows.
Numbers = NDArray[np.int64]
Size = TypeVar("Size", int, NDArray[np.int64])


def round_size(size: Size) -> Size:
    """Round a size (or each of several, all 1 or more) up to one of the sixteen sizes between two powers of two.

    oneDNN prepares a product for each shape that it has not met, which takes 1 to 30 ms in bfloat16, longer than the
    product itself, and FlexAttention is compiled for it, which takes seconds: with few different sizes, shapes repeat.
    """
    steps = np.maximum(1, (1 << (np.frexp(size)[1] - 1)) >> 4)
    rounded: Size = -(-size // steps) * steps
    return rounded


# A micro-batch ends where the next sequence is shorter than this share of its first one: on problems of varied length,
# full micro-batches computed 1.7 positions for each token, the rest being padding. But each forward pass has a cost of
# its own, so a micro-batch is filled to at least one part in `_LEAST` of the limit.
_ALIKE = 0.75
_LEAST = 8


@frozen
class Assignment:
    """The sequences that one process puts through one forward pass.

    Attributes:
        sequences: their numbers, at least one.
        counts: False if no sequence is left for this process. All processes must compute equally often, so it repeats
            the sequences of another one, and its loss is multiplied by 0.
        end_to_end: whether the sequences are laid end to end in one row, instead of one below the other.
    """

    sequences: Numbers
    counts: bool = True
    end_to_end: bool = False


def micro_batches(
    lengths: NDArray[np.int64], *, size: int | None, tokens: int, ranks: int = 1, end_to_end: bool = False
) -> Iterator[list[Numbers]]:
    """Split the sequences of one step, given their lengths, into micro-batches of similar length for each process.

    Longest first, so that there is little padding, and so that too little memory shows at once. Sequences are dealt to
    the processes in turn, so that none waits long for another:

        lengths   9 8 7 7 5 4 3        two processes, two sequences each
        process 0 [9, 7] [5, 3]
        process 1 [8, 7] [4]

    Args:
        lengths: in tokens, int64 `[sequences]`.
        size: sequences in a micro-batch. None: as many as fit into `tokens` with their padding, at least one, and of
            similar length unless they are laid end to end.
        tokens: maximum number of tokens in a micro-batch if `size` is None, padding included.
        ranks: number of processes.
        end_to_end: whether the sequences of a micro-batch are laid end to end and padded at the end only.

    Yields:
        For each process, indices into `lengths`; the last arrays may be empty. Every sequence appears once.
    """
    filling = _filling_end_to_end if end_to_end else _filling
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = (size or filling(lengths[order[start:]], tokens, ranks)) * ranks
        dealt = order[start : start + count]
        yield [dealt[rank::ranks] for rank in range(ranks)]
        start += count


def _filling(lengths: NDArray[np.int64], tokens: int, ranks: int) -> int:
    """How many of these sequences, longest first, each process takes in the next pass at most."""
    longest = int(lengths[0])
    most = max(1, tokens // longest)
    alike = int(np.count_nonzero(lengths >= _ALIKE * longest))
    enough = max(1, tokens // (_LEAST * longest))
    return min(most, max(enough, alike // ranks))


def _filling_end_to_end(lengths: NDArray[np.int64], tokens: int, ranks: int) -> int:
    """The same for sequences laid end to end; the first process gets the longest ones."""
    sums = round_size(np.cumsum(lengths[: tokens * ranks : ranks]))
    return max(1, int(np.searchsorted(sums, tokens, side="right")))


@frozen(kw_only=True)
class MicroBatch:
    """Sequences that go through the model together, padded on the right.

        input_ids       a  b  c  d  e  f  0  0  0      a pack of two documents; c, e and f are trained
                        g  h  i  j  k  l  m  n  o      a row, which is one document
        position_ids    0  1  2  0  1  2  0  1  2      padding is one or more documents of its own
                        0  1  2  3  4  5  6  7  8
        positions       1  3  4 …                      never 2: a document's end does not predict the next document
        targets         c  e  f …

    Attributes:
        ids: the examples' ids.
        input_ids: int64 `[sequences, length]`; padding is 0.
        attention_mask: int64 `[sequences, length]`, 1 for a token and 0 for padding. None if there is no padding, or
            if there are `position_ids`, which separate the padding from the rest.
        position_ids: int64 `[sequences, length]`, each token's place in its document. None if every sequence is a
            single document in a row of its own.
        positions: int64 `[trained]`, places in the flattened `input_ids` at which the next token is predicted.
        targets: int64 `[trained]`, those next tokens.
        sources: int64 `[trained]`, the number of the source of each target.
        tokens: number of tokens, without padding.
    """

    ids: tuple[str, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    positions: torch.Tensor
    targets: torch.Tensor
    sources: torch.Tensor
    tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device, copied while the host goes on with its work."""
        if device.type == "cpu":
            return self

        def move(value: Any) -> Any:
            return value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return MicroBatch(**{name: move(value) for name, value in asdict(self, recurse=False).items()})


def collate(
    sequences: Sequence[Sequence[TokenRow]], sources: Mapping[str, int] | None = None, *, end_to_end: bool = False
) -> MicroBatch:
    """Lay the documents of each sequence end to end, and pad the sequences to the longest of them.

    If a sequence has several documents, they are padded to a size of `round_size`.

    A token is trained if its row marks it as `trained`, except for the first of a row, which nothing predicts.

    Args:
        sequences: the rows of each.
        sources: the numbers of the sources by name; a source that is not listed has number 0.
        end_to_end: also lay the sequences end to end in one row, which is padded to such a size, too.
    """
    if end_to_end:
        sequences = [[row for sequence in sequences for row in sequence]]
    lengths = np.array([sum(len(row.input_ids) for row in sequence) for sequence in sequences])
    longest = max(len(row.input_ids) for sequence in sequences for row in sequence)
    packed = end_to_end or any(len(sequence) > 1 for sequence in sequences)
    width = round_size(lengths).max() if packed else lengths.max()
    input_ids = np.zeros((len(sequences), width), dtype=np.int64)
    is_trained = np.zeros(input_ids.shape, dtype=np.bool_)
    position_ids = np.zeros_like(input_ids)
    source_of = np.zeros_like(input_ids)
    for index, sequence in enumerate(sequences):
        start = 0
        for row in sequence:
            end = start + len(row.input_ids)
            input_ids[index, start:end] = row.input_ids
            is_trained[index, start + 1 : end] = row.trained[1:]
            position_ids[index, start:end] = np.arange(end - start)
            source_of[index, start:end] = (sources or {}).get(row.source, 0)
            start = end
        # A model with learned positions may have none beyond the longest row.
        position_ids[index, start:] = np.arange(input_ids.shape[1] - start) % longest
    predicted = np.flatnonzero(is_trained)
    mask = np.arange(input_ids.shape[1]) < lengths[:, None]
    return MicroBatch(
        ids=tuple(row.id for sequence in sequences for row in sequence),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=None if packed or mask.all() else torch.from_numpy(mask.astype(np.int64)),
        position_ids=torch.from_numpy(position_ids) if packed else None,
        positions=torch.from_numpy(predicted - 1),
        targets=torch.from_numpy(input_ids.ravel()[predicted]),
        sources=torch.from_numpy(source_of.ravel()[predicted]),
        tokens=int(lengths.sum()),
    )
