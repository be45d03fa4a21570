"""From prepared tokens to what one optimizer step sees: a function of (seed, step), so that resuming needs no state.

What goes through the model is a sequence: a row, or a pack of several where the folder has packs; the rows in it are
its documents. The sequences are laid end to end, each epoch in an order of its own; a step takes the next `batch_size`
of them, so a batch may end one epoch and begin the next. With `epochs`, the last step takes what is left, which may be
fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from modelwright.core.api import Job, TokenFolder, TokenRow, TrainSettings
from modelwright.plugins.trainers.batches.micro_batches import (
    Assignment,
    MicroBatch,
    Numbers,
    collate,
    micro_batches,
    round_size,
)

Item = TypeVar("Item")
Made = TypeVar("Made")


class Prefetch(Generic[Item, Made]):
    """`map(make, items)`, in which a thread makes the next result while the caller uses the last one.

    An error of `make` is raised in the place of its result.

    Args:
        make: makes a result of an item, such as a micro-batch of what is read from a disk.
    """

    def __init__(self, make: Callable[[Item], Made]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: tuple[Item, Future[Made]] | None = None

    def each(self, items: Sequence[Item], after: Item | None = None) -> Iterator[Made]:
        """Yield the result for each item.

        Args:
            items: in this order.
            after: the first item of the next call if it is known, so that it is made early too; the same object.
        """
        for item, following in zip(items, [*items[1:], after], strict=True):
            made = self._future(item).result()
            self._coming = None if following is None else (following, self._thread.submit(self._make, following))
            yield made

    def _future(self, item: Item) -> Future[Made]:
        if self._coming is not None and self._coming[0] is item:
            return self._coming[1]
        return self._thread.submit(self._make, item)


class SequenceOrder:
    """The sequences of all epochs, one epoch after the other, each a permutation drawn from (seed, epoch)."""

    def __init__(self, sequences: int, seed: int) -> None:
        self.sequences = sequences
        self.seed = seed
        self._epochs: dict[int, Numbers] = {}

    def _epoch(self, epoch: int) -> Numbers:
        if epoch not in self._epochs:
            # A batch may span the epoch that just ended and this one; older epochs are not needed again.
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1}
            self._epochs[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.sequences)
        return self._epochs[epoch]

    def take(self, start: int, count: int) -> Numbers:
        """The `count` indices of sequences from position `start`."""
        taken: list[Numbers] = []
        while count:
            epoch, offset = divmod(start, self.sequences)
            of_epoch = self._epoch(epoch)[offset : offset + count]
            taken.append(of_epoch)
            start, count = start + len(of_epoch), count - len(of_epoch)
        return np.concatenate(taken)


class Corpus:
    """The sequences of a token folder that have trained tokens.

    A row without a trained token is left out, also from its pack; so is a pack of such rows only.

    Attributes:
        path: the folder.
        sequences: the numbers of the sequences in it.
        examples: number of rows in them.
        skipped: number of rows that were left out.
        tokens: number of tokens in them.
        longest: tokens in the longest row; 0 if there are no rows.
        largest_token: the highest token id.
        sources: the files that the rows came from, in the order of their numbers in a `MicroBatch`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = TokenFolder(path)
        packs = self._folder.packs
        lengths, trained_tokens = self._folder.lengths(), self._folder.trained_tokens()
        self._has_trained_tokens = trained_tokens > 0
        self._row_lengths = lengths = np.where(self._has_trained_tokens, lengths, 0)
        rows = self._has_trained_tokens.astype(np.int32)

        def per_sequence(values: NDArray[np.int32]) -> NDArray[np.int64]:
            return values.astype(np.int64) if packs is None else packs.sums(values)

        self._lengths, self._trained_tokens, self._documents = map(per_sequence, (lengths, trained_tokens, rows))
        self.sequences: Numbers = np.flatnonzero(self._trained_tokens)
        self.examples = int(self._documents.sum())
        self.skipped = len(self._folder) - self.examples
        self.tokens = int(self._lengths.sum())
        self.longest = int(lengths.max(initial=0))
        self.largest_token = self._folder.largest_token()
        self.sources = self._folder.sources()
        self._source_numbers = {name: number for number, name in enumerate(self.sources)}
        self._prefetch: Prefetch[Assignment, MicroBatch] = Prefetch(self.read)

    def packed(self, sequences: Numbers) -> Numbers:
        """The sequences among these that hold several documents."""
        return sequences[self._documents[sequences] > 1]

    def trained_tokens(self, sequences: Numbers) -> int:
        """The number of trained tokens in these sequences."""
        return int(self._trained_tokens[sequences].sum())

    def assignments(
        self,
        sequences: Numbers,
        *,
        rank: int = 0,
        ranks: int = 1,
        size: int | None,
        tokens: int,
        end_to_end: bool = False,
    ) -> list[Assignment]:
        """What process `rank` of `ranks` takes of these sequences, one forward pass after the other.

        See `micro_batches` for `size`, `tokens` and `end_to_end`.
        """
        lengths = self._lengths[sequences]
        if self._folder.packs is not None and not end_to_end:
            lengths = round_size(lengths)  # as `collate` pads them
        rounds = micro_batches(lengths, size=size, tokens=tokens, ranks=ranks, end_to_end=end_to_end)
        own = [(dealt[rank], dealt[0][:1]) for dealt in rounds]
        return [
            Assignment(sequences[taken if len(taken) else other], counts=bool(len(taken)), end_to_end=end_to_end)
            for taken, other in own
        ]

    def longest_sequences(self, count: int) -> Numbers:
        """The numbers of the `count` longest sequences."""
        return self.sequences[np.argsort(-self._lengths[self.sequences], kind="stable")[:count]]

    def varied(self) -> list[TokenRow]:
        """The shortest row with trained tokens, the longest, and one between; empty if there is no such row."""
        rows = np.flatnonzero(self._has_trained_tokens)
        if not len(rows):
            return []
        ordered = rows[np.argsort(self._row_lengths[rows], kind="stable")].tolist()
        return [self._folder[row] for row in (ordered[0], ordered[-1], ordered[len(ordered) // 2])]

    def documents(self, sequence: int) -> list[TokenRow]:
        """Read the rows of a sequence that have trained tokens."""
        packs = self._folder.packs
        rows = [sequence] if packs is None else packs[sequence].tolist()
        return [self._folder[row] for row in rows if self._has_trained_tokens[row]]

    def batches(
        self, assignments: Sequence[Assignment], after: Assignment | None = None
    ) -> Iterator[tuple[Assignment, MicroBatch]]:
        """Read micro-batches, each while the one before is used; `after` is the first of the next call."""
        return zip(assignments, self._prefetch.each(assignments, after), strict=True)

    def read(self, assignment: Assignment) -> MicroBatch:
        """Read a micro-batch."""
        sequences = [self.documents(sequence) for sequence in assignment.sequences.tolist()]
        return collate(sequences, self._source_numbers, end_to_end=assignment.end_to_end)


def held_out(job: Job) -> Corpus | None:
    """The job's held-out tokens; None if it has none, or if nothing was held out and there is no folder."""
    return Corpus(job.holdout) if job.holdout and job.holdout.exists() else None


class Plan:
    """Which sequences each optimizer step trains on.

    Attributes:
        count: sequences in all steps together.
        steps: number of optimizer steps.
        batch_size: sequences in each step, except for the last, which has what is left.

    Raises:
        UsageError: the batch size is larger than the number of sequences.
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
        """The numbers of the sequences of optimizer step `step` (1 to `steps`)."""
        start = (step - 1) * self.batch_size
        return self._sequences[self._order.take(start, min(self.batch_size, self.count - start))]
