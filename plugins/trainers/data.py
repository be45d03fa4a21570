"""From prepared tokens to what one optimiser step sees: a function of (seed, step), so that resuming needs no state.

A sequence is a row, or a pack of rows where they are packed. The sequences are laid end to end, each epoch in an order
of its own; a step takes the next `batch_size` of them, so a batch may end one epoch and begin the next. With `epochs`,
the last step takes what is left, which may be fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import fields, frozen
from numpy.typing import NDArray

from modelwright.core.api import TokenFolder, TokenRow, TrainSettings

Rows = NDArray[np.int64]


@frozen
class MicroBatch:
    """Sequences that go through the model together, padded on the right.

    Attributes:
        ids: the examples' ids.
        input_ids: int64 `[sequences, length]`; padding is 0.
        attention_mask: int64 `[sequences, length]`, 1 where there is a token; None where nothing is padded, and for
            packs: what is padded there is a document of its own.
        position_ids: int64 `[sequences, length]`, each token's place in its document; None where nothing is packed.
        positions: int64 `[supervised]`, where in the flattened `input_ids` a next token is to be predicted.
        targets: int64 `[supervised]`, those next tokens.
        tokens: how many tokens there are, padding aside.
    """

    ids: tuple[str, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    positions: torch.Tensor
    targets: torch.Tensor
    tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device; the copy runs beside the host's work."""
        if device.type == "cpu":
            return self

        def moved(value: Any) -> Any:
            return value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return MicroBatch(**{each.name: moved(getattr(self, each.name)) for each in fields(MicroBatch)})


def collate(sequences: Sequence[Sequence[TokenRow]], *, packed: bool) -> MicroBatch:
    """Lay the documents of each sequence end to end, and pad the sequences to the longest of them.

    A token is supervised where its row says `trained`, but for a document's first: nothing comes before it.

    Args:
        sequences: the documents in each, in order; one in each where they are not packed.
        packed: whether positions tell where a document begins.
    """
    lengths = [sum(len(document.input_ids) for document in sequence) for sequence in sequences]
    input_ids = np.zeros((len(sequences), max(lengths)), dtype=np.int64)
    supervised = np.zeros(input_ids.shape, dtype=np.bool_)
    starts = np.zeros(input_ids.shape, dtype=np.int64)  # of the document that a token is in
    for index, sequence in enumerate(sequences):
        start = 0
        for document in sequence:
            end = start + len(document.input_ids)
            input_ids[index, start:end] = document.input_ids
            supervised[index, start + 1 : end] = document.trained[1:]
            starts[index, start:end] = start
            start = end
        starts[index, start:] = start
    predicted = np.flatnonzero(supervised)
    places = np.arange(input_ids.shape[1])
    mask = places < np.array(lengths)[:, None]
    return MicroBatch(
        ids=tuple(document.id for sequence in sequences for document in sequence),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=None if packed or mask.all() else torch.from_numpy(mask.astype(np.int64)),
        position_ids=torch.from_numpy(places - starts) if packed else None,
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


def micro_batches(lengths: NDArray[np.int64], *, size: int | None, tokens: int) -> Iterator[Rows]:
    """Split the sequences of one step, given their lengths, into micro-batches of similar length.

    Longest first, so that little is padded, and so that memory which does not suffice is met at once.

    Args:
        lengths: int64 `[sequences]`.
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
    """The sequences of a folder of tokens that teach something: its packs, or its rows where it has none.

    Attributes:
        path: the folder.
        rows: the sequences' numbers in it, int64; one without a supervised token is left out.
        skipped: how many were left out.
        tokens: how many they have together.
        longest: the tokens of the longest; 0 where there are no rows.
        largest_token: the highest token id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TokenFolder(path)
        self._packs = self._file.packs
        self._lengths = self._summed(self._file.lengths())
        self._supervised = self._summed(self._file.supervised())
        self.rows: Rows = np.flatnonzero(self._supervised)
        self.skipped = len(self._supervised) - len(self.rows)
        self.tokens = int(self._lengths[self.rows].sum(dtype=np.int64))
        self.longest = int(self._lengths[self.rows].max(initial=0))
        self.largest_token = self._file.largest_token()

    def _summed(self, values: NDArray[np.int32]) -> NDArray[np.int64]:
        return values.astype(np.int64) if self._packs is None else self._packs.sums(values)

    def supervised(self, rows: Rows) -> int:
        """How many tokens are learnt in these sequences."""
        return int(self._supervised[rows].sum(dtype=np.int64))

    def split(self, rows: Rows, *, size: int | None, tokens: int) -> list[Rows]:
        """These sequences as micro-batches; see `micro_batches`."""
        return [rows[part] for part in micro_batches(self._lengths[rows], size=size, tokens=tokens)]

    def read(self, rows: Rows) -> MicroBatch:
        """Read a micro-batch."""
        return collate([self._documents(row) for row in rows.tolist()], packed=self._packs is not None)

    def some_packs(self, most: int) -> list[list[TokenRow]]:
        """The documents of the first packs that have several; none where the rows are not packed."""
        if self._packs is None:
            return []
        several = (row for row in self.rows.tolist() if len(self._packs[row]) > 1)
        return [self._documents(row) for row in itertools.islice(several, most)]

    def _documents(self, row: int) -> list[TokenRow]:
        return [self._file[row]] if self._packs is None else [self._file[each] for each in self._packs[row].tolist()]


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
