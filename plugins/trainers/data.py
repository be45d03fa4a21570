"""From prepared tokens to what one optimiser step sees: a function of (seed, step), so that resuming needs no state.

The rows are laid end to end, each epoch in an order of its own; a step takes the next `batch_size` of them, so a batch
may end one epoch and begin the next. With `epochs`, the last step takes what is left, which may be fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray

from modelwright.core.api import TokenFolder, TokenRow, TrainSettings

Rows = NDArray[np.int64]


@frozen
class MicroBatch:
    """Sequences that go through the model together, padded on the right.

    Attributes:
        ids: the examples' ids.
        input_ids: int64 `[sequences, length]`; padding is 0.
        attention_mask: int64 `[sequences, length]`, 1 where there is a token; None where nothing is padded.
        positions: int64 `[supervised]`, where in the flattened `input_ids` a next token is to be predicted.
        targets: int64 `[supervised]`, those next tokens.
        tokens: how many tokens there are, padding aside.
    """

    ids: tuple[str, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    positions: torch.Tensor
    targets: torch.Tensor
    tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device; the copy runs beside the host's work."""
        if device.type == "cpu":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        mask = None if self.attention_mask is None else move(self.attention_mask)
        moved = (move(self.input_ids), mask, move(self.positions), move(self.targets))
        return MicroBatch(self.ids, *moved, self.tokens)


def collate(rows: Sequence[TokenRow]) -> MicroBatch:
    """Pad rows to the longest of them.

    A token is supervised where the row says `trained`, but for its first token: nothing comes before it.
    """
    lengths = [len(row.input_ids) for row in rows]
    input_ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
    supervised = np.zeros(input_ids.shape, dtype=np.bool_)
    for index, row in enumerate(rows):
        input_ids[index, : lengths[index]] = row.input_ids
        supervised[index, 1 : lengths[index]] = row.trained[1:]
    predicted = np.flatnonzero(supervised)
    mask = np.arange(input_ids.shape[1]) < np.array(lengths)[:, None]
    return MicroBatch(
        ids=tuple(row.id for row in rows),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=None if mask.all() else torch.from_numpy(mask.astype(np.int64)),
        positions=torch.from_numpy(predicted - 1),
        targets=torch.from_numpy(input_ids.ravel()[predicted]),
        tokens=sum(lengths),
    )


class RowOrder:
    """The rows of all epochs, end to end, each epoch a permutation drawn from (seed, epoch)."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._epochs: dict[int, Rows] = {}

    def _epoch(self, epoch: int) -> Rows:
        if epoch not in self._epochs:
            # The epoch that just ended may share a batch with this one; older ones are not asked for again.
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1}
            self._epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return self._epochs[epoch]

    def take(self, start: int, count: int) -> Rows:
        """`count` row numbers from position `start`."""
        parts: list[Rows] = []
        while count:
            epoch, offset = divmod(start, self.rows)
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


def micro_batches(lengths: NDArray[np.int32], *, size: int | None, tokens: int) -> Iterator[Rows]:
    """Split the sequences of one step, given their lengths, into micro-batches of similar length.

    Longest first, so that little is padded, and so that memory which does not suffice is met at once.

    Args:
        lengths: int32 `[sequences]`.
        size: sequences in a micro-batch; None: as many as fit into `tokens` with their padding, one at least.
        tokens: see `size`.

    Yields:
        Indices into `lengths`; every sequence once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        count = size or max(1, tokens // longest)
        yield order[start : start + count]
        start += count


class Corpus:
    """The rows of a token file that teach something.

    Attributes:
        path: the token file.
        rows: their numbers in it, int64; a row without a supervised token is left out.
        skipped: how many were left out.
        tokens: how many they have together.
        longest: the tokens of the longest; 0 where there are no rows.
        largest_token: the highest token id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TokenFolder(path)
        self._lengths = self._file.lengths()
        self._supervised = self._file.supervised()
        self.rows: Rows = np.flatnonzero(self._supervised)
        self.skipped = len(self._file) - len(self.rows)
        self.tokens = int(self._lengths[self.rows].sum(dtype=np.int64))
        self.longest = int(self._lengths[self.rows].max(initial=0))
        self.largest_token = self._file.largest_token()

    def supervised(self, rows: Rows) -> int:
        """How many tokens are learnt in these rows."""
        return int(self._supervised[rows].sum(dtype=np.int64))

    def split(self, rows: Rows, *, size: int | None, tokens: int) -> list[Rows]:
        """These rows as micro-batches; see `micro_batches`."""
        return [rows[part] for part in micro_batches(self._lengths[rows], size=size, tokens=tokens)]

    def read(self, rows: Rows) -> MicroBatch:
        """Read a micro-batch."""
        return collate([self._file[int(row)] for row in rows])


class Plan:
    """Which rows each optimiser step learns.

    Attributes:
        examples: sequences in all steps together.
        steps: optimiser steps.
    """

    def __init__(self, corpus: Corpus, settings: TrainSettings, *, seed: int) -> None:
        self._rows = corpus.rows
        self._batch_size = settings.batch_size
        if settings.max_steps is not None:
            self.examples = settings.max_steps * settings.batch_size
        else:
            assert settings.epochs is not None
            self.examples = max(1, round(settings.epochs * len(corpus.rows)))
        self.steps = -(-self.examples // settings.batch_size)
        self._order = RowOrder(len(corpus.rows), seed)

    def rows(self, step: int) -> Rows:
        """The rows of optimiser step `step` (1 to `steps`)."""
        start = (step - 1) * self._batch_size
        return self._rows[self._order.take(start, min(self._batch_size, self.examples - start))]
