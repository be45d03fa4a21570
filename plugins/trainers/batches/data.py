"""From prepared tokens to what one optimiser step sees: a function of (seed, step), so that resuming needs no state.

What goes through the model is a sequence: a row, or a pack of several where the folder has packs; the rows in it are
its documents. The sequences are laid end to end, each epoch in an order of its own; a step takes the next `batch_size`
of them, so a batch may end one epoch and begin the next. With `epochs`, the last step takes what is left, which may be
fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import asdict, frozen
from numpy.typing import NDArray

from modelwright.core.api import Job, TokenFolder, TokenRow, TrainSettings
from modelwright.plugins.trainers.batches.prefetch import Ahead
from modelwright.plugins.trainers.batches.size_rounding import round_size
from modelwright.plugins.trainers.ranks import Ranks

# Numbers of sequences: of packs where the folder has them, else of rows.
Numbers = NDArray[np.int64]


@frozen(kw_only=True)
class MicroBatch:
    """Sequences that go through the model together, padded on the right.

        input_ids       a  b  c  d  e  f  0  0  0      a pack of two documents, which asks for c, e and f
                        g  h  i  j  k  l  m  n  o      a row of one
        position_ids    0  1  2  0  1  2  0  1  2      padding is a document of its own, or several
                        0  1  2  3  4  5  6  7  8
        positions       1  3  4 …                      never 2: no document is asked for the beginning of the next
        targets         c  e  f …

    Attributes:
        ids: the examples' ids.
        input_ids: int64 `[sequences, length]`; padding is 0.
        attention_mask: int64 `[sequences, length]`, 1 where there is a token; None where nothing is padded, and where
            there are `position_ids`, which tell padding from the rest.
        position_ids: int64 `[sequences, length]`, each token's place in its document; None where the sequences
            are one document each and stand below each other.
        positions: int64 `[supervised]`, where in the flattened `input_ids` a next token is to be predicted.
        targets: int64 `[supervised]`, those next tokens.
        sources: int64 `[supervised]`, the number of the source that each of them came from.
        tokens: how many tokens there are, padding aside.
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
        """The same on another device; the copy runs beside the host's work."""
        if device.type == "cpu":
            return self

        def move(value: Any) -> Any:
            return value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return MicroBatch(**{name: move(value) for name, value in asdict(self, recurse=False).items()})


def collate(
    sequences: Sequence[Sequence[TokenRow]], sources: Mapping[str, int] | None = None, *, end_to_end: bool = False
) -> MicroBatch:
    """Lay each sequence's documents end to end, and pad the sequences to the longest of them.

    Args:
        sequences: the rows of each.
        sources: the numbers of the sources by their names; one that is not among them has 0.
        end_to_end: whether the sequences are laid end to end too, as one, which is padded to a `round_size`.

    A token is supervised where its row says `trained`, but for the row's first: nothing of the row comes before it.
    """
    if end_to_end:
        sequences = [[row for sequence in sequences for row in sequence]]
    lengths = np.array([sum(len(row.input_ids) for row in sequence) for sequence in sequences])
    longest = max(len(row.input_ids) for sequence in sequences for row in sequence)
    width = round_size(lengths).max() if end_to_end else lengths.max()
    input_ids = np.zeros((len(sequences), width), dtype=np.int64)
    supervised = np.zeros(input_ids.shape, dtype=np.bool_)
    position_ids = np.zeros_like(input_ids)
    source_of = np.zeros_like(input_ids)
    for index, sequence in enumerate(sequences):
        start = 0
        for row in sequence:
            end = start + len(row.input_ids)
            input_ids[index, start:end] = row.input_ids
            supervised[index, start + 1 : end] = row.trained[1:]
            position_ids[index, start:end] = np.arange(end - start)
            source_of[index, start:end] = (sources or {}).get(row.source, 0)
            start = end
        # Beyond the longest row there may be no positions to learn, nor to stretch.
        position_ids[index, start:] = np.arange(input_ids.shape[1] - start) % longest
    predicted = np.flatnonzero(supervised)
    packed = end_to_end or any(len(sequence) > 1 for sequence in sequences)
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


class SequenceOrder:
    """The sequences of all epochs, end to end, each epoch a permutation drawn from (seed, epoch)."""

    def __init__(self, sequences: int, seed: int) -> None:
        self.sequences = sequences
        self.seed = seed
        self._epochs: dict[int, Numbers] = {}

    def _epoch(self, epoch: int) -> Numbers:
        if epoch not in self._epochs:
            # The epoch that just ended may share a batch with this one; older ones are not asked for again.
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1}
            self._epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.sequences)
        return self._epochs[epoch]

    def take(self, start: int, count: int) -> Numbers:
        """`count` indices of sequences from position `start`."""
        parts: list[Numbers] = []
        while count:
            epoch, offset = divmod(start, self.sequences)
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


# A micro-batch ends where the next sequence is shorter than this share of its first one: on problems of varied length,
# batches filled to the brim computed 1.7 places for each token, with the difference padding. But a pass has its price
# too, so it holds a `_LEAST`-th of what may be at least.
_ALIKE = 0.75
_LEAST = 8


@frozen
class Part:
    """What one process takes of one forward pass.

    Attributes:
        sequences: their numbers, one at least.
        counts: False where there is nothing left for this process: all of them must compute equally often, so it
            computes what another one does, and its loss is multiplied by 0.
        end_to_end: whether they are laid end to end, instead of below each other.
    """

    sequences: Numbers
    counts: bool = True
    end_to_end: bool = False


def micro_batches(
    lengths: NDArray[np.int64], *, size: int | None, tokens: int, ranks: int = 1, end_to_end: bool = False
) -> Iterator[list[Numbers]]:
    """Split the sequences of one step, given their lengths, into micro-batches of similar length for each process.

    Longest first, so that little is padded, and so that memory which does not suffice is met at once. The processes
    are dealt sequences in turn, so that none waits long for another:

        lengths   9 8 7 7 5 4 3        two processes, two sequences each
        process 0 [9, 7] [5, 3]
        process 1 [8, 7] [4]

    Args:
        lengths: in tokens, int64 `[sequences]`.
        size: sequences in a micro-batch; None: as many as fit into `tokens` with their padding, one at least; of like
            length, unless they are laid end to end.
        tokens: see `size`.
        ranks: how many processes there are.
        end_to_end: whether a micro-batch is one sequence, padded at its end only.

    Yields:
        For each process indices into `lengths`, at the end perhaps none; every sequence once.
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
    """How many of the first of these sequences, longest first, each process takes at most in one pass."""
    longest = int(lengths[0])
    most = max(1, tokens // longest)
    alike = int(np.count_nonzero(lengths >= _ALIKE * longest))
    enough = max(1, tokens // (_LEAST * longest))
    return min(most, max(enough, alike // ranks))


def _filling_end_to_end(lengths: NDArray[np.int64], tokens: int, ranks: int) -> int:
    """The same where they are laid end to end; the first process is dealt the longest."""
    sums = round_size(np.cumsum(lengths[: tokens * ranks : ranks]))
    return max(1, int(np.searchsorted(sums, tokens, side="right")))


class Corpus:
    """The sequences of a folder of tokens that teach something.

    A row without a supervised token is left out, of its pack too; so is a pack that has no other.

    Attributes:
        path: the folder.
        sequences: their numbers in it.
        examples: how many rows they have together.
        skipped: how many rows were left out.
        tokens: how many tokens they have together.
        longest: the tokens of the longest row; 0 where there are none.
        largest_token: the highest token id.
        sources: the files that they came from, in the order of their numbers in a `MicroBatch`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = TokenFolder(path)
        packs = self._folder.packs
        lengths, supervised = self._folder.lengths(), self._folder.supervised()
        self._taught = supervised > 0
        self._row_lengths = lengths = np.where(self._taught, lengths, 0)
        rows = self._taught.astype(np.int32)

        def per_sequence(values: NDArray[np.int32]) -> NDArray[np.int64]:
            return values.astype(np.int64) if packs is None else packs.sums(values)

        self._lengths, self._supervised, self._documents = map(per_sequence, (lengths, supervised, rows))
        self.sequences: Numbers = np.flatnonzero(self._supervised)
        self.examples = int(self._documents.sum())
        self.skipped = len(self._folder) - self.examples
        self.tokens = int(self._lengths.sum())
        self.longest = int(lengths.max(initial=0))
        self.largest_token = self._folder.largest_token()
        self.sources = self._folder.sources()
        self._source_numbers = {name: number for number, name in enumerate(self.sources)}
        self._ahead: Ahead[Part, MicroBatch] = Ahead(self.read)

    def packed(self, sequences: Numbers) -> Numbers:
        """Those of these sequences that hold several documents."""
        return sequences[self._documents[sequences] > 1]

    def supervised(self, sequences: Numbers) -> int:
        """How many tokens are learnt in these sequences."""
        return int(self._supervised[sequences].sum())

    def parts(
        self, sequences: Numbers, ranks: Ranks, *, size: int | None, tokens: int, end_to_end: bool = False
    ) -> list[Part]:
        """What this process takes of these sequences, pass after pass; see `micro_batches`."""
        lengths = self._lengths[sequences]
        rounds = micro_batches(lengths, size=size, tokens=tokens, ranks=ranks.size, end_to_end=end_to_end)
        own = [(dealt[ranks.rank], dealt[0][:1]) for dealt in rounds]
        return [
            Part(sequences[taken if len(taken) else other], counts=bool(len(taken)), end_to_end=end_to_end)
            for taken, other in own
        ]

    def longest_sequences(self, count: int) -> Numbers:
        """The numbers of the `count` longest sequences."""
        return self.sequences[np.argsort(-self._lengths[self.sequences], kind="stable")[:count]]

    def varied(self) -> list[TokenRow]:
        """A short row, the longest, and one between, of those that teach something; none where there are none."""
        rows = np.flatnonzero(self._taught)
        if not len(rows):
            return []
        ordered = rows[np.argsort(self._row_lengths[rows], kind="stable")].tolist()
        return [self._folder[row] for row in (ordered[0], ordered[-1], ordered[len(ordered) // 2])]

    def documents(self, sequence: int) -> list[TokenRow]:
        """Read the rows of a sequence that teach something."""
        packs = self._folder.packs
        rows = [sequence] if packs is None else packs[sequence].tolist()
        return [self._folder[row] for row in rows if self._taught[row]]

    def batches(self, parts: Sequence[Part], after: Part | None = None) -> Iterator[tuple[Part, MicroBatch]]:
        """Read micro-batches, each while the one before is used; `after` is the first one of the next call."""
        return zip(parts, self._ahead.each(parts, after), strict=True)

    def read(self, part: Part) -> MicroBatch:
        """Read a micro-batch."""
        sequences = [self.documents(sequence) for sequence in part.sequences.tolist()]
        return collate(sequences, self._source_numbers, end_to_end=part.end_to_end)


def held_out(job: Job) -> Corpus | None:
    """The job's held-out tokens; None where it has none, or nothing was held out and there is no folder."""
    return Corpus(job.holdout) if job.holdout and job.holdout.exists() else None


class Plan:
    """Which sequences each optimiser step learns.

    Attributes:
        count: sequences in all steps together.
        steps: optimiser steps.
        batch_size: sequences in each of them but the last, which has what is left.

    Raises:
        UsageError: a step is to have more sequences than there are.
    """

    def __init__(self, corpus: Corpus, settings: TrainSettings, *, seed: int) -> None:
        self._sequences = corpus.sequences
        self.batch_size = settings.sequences_in_a_step(len(corpus.sequences))
        if settings.max_steps is not None:
            self.count = settings.max_steps * self.batch_size
        else:
            assert settings.epochs is not None
            self.count = max(1, round(settings.epochs * len(corpus.sequences)))
        self.steps = -(-self.count // self.batch_size)
        self._order = SequenceOrder(len(corpus.sequences), seed)

    def sequences(self, step: int) -> Numbers:
        """The numbers of the sequences of optimiser step `step` (1 to `steps`)."""
        start = (step - 1) * self.batch_size
        return self._sequences[self._order.take(start, min(self.batch_size, self.count - start))]
