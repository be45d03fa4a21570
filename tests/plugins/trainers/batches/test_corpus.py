"""Which sequences each optimizer step trains on, and how they are read."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import TokenFolder, TrainSettings, UsageError
from modelwright.core.testing.trainer import counting_rows, write_token_folder
from modelwright.plugins.trainers.batches.corpus import Corpus, Plan, Prefetch, SequenceOrder

token_rows = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=12).map(
        lambda pairs: ("id", [token for token, _ in pairs], [trained for _, trained in pairs])
    ),
    max_size=12,
)


@given(rows=token_rows)
def test_a_token_file_counts_what_its_rows_teach(rows, tmp_path_factory):
    """The counts are those of a plain loop, also if something is empty."""
    file = TokenFolder(write_token_folder(tmp_path_factory.mktemp("tokens") / "rows", rows))
    assert file.trained_tokens().tolist() == [sum(trained[1:]) for _, _, trained in rows]
    assert file.lengths().tolist() == [len(ids) for _, ids, _ in rows]
    assert file.largest_token() == max((token for _, ids, _ in rows for token in ids), default=-1)


@given(st.integers(1, 30), st.integers(0, 2**63 - 1), st.integers(0, 200), st.integers(1, 70))
def test_the_order_is_a_permutation_for_each_epoch_wherever_one_begins_to_read(rows, seed, start, count):
    """Every epoch has each row once, and a part of the order is the same however it is reached."""
    whole = SequenceOrder(rows, seed).take(0, start + count + rows)
    assert SequenceOrder(rows, seed).take(start, count).tolist() == whole[start : start + count].tolist()
    for epoch in range((start + count) // rows):
        assert sorted(whole[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own():
    """Neither the next epoch nor another seed repeats an order."""
    first, second = SequenceOrder(50, 1).take(0, 100).reshape(2, 50).tolist()
    assert first != second
    assert first != SequenceOrder(50, 2).take(0, 50).tolist()


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 4, 12])
def test_processes_take_as_many_passes_each_and_together_every_sequence_once(tmp_path, count, ranks, size):
    """Who has nothing left computes along with what does not count: collective operations must meet."""
    corpus = Corpus(write_token_folder(tmp_path / "rows", counting_rows(count)))
    shares = [
        corpus.assignments(corpus.sequences, rank=rank, ranks=ranks, size=size, tokens=30) for rank in range(ranks)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(len(part.sequences) for share in shares for part in share)
    counted = [number for share in shares for part in share if part.counts for number in part.sequences.tolist()]
    assert sorted(counted) == corpus.sequences.tolist()


@pytest.fixture
def corpus(tmp_path):
    return Corpus(write_token_folder(tmp_path / "rows", counting_rows(10)))


@pytest.mark.parametrize(("epochs", "sizes"), [(1, [4, 4, 2]), (2.5, [4, 4, 4, 4, 4, 4, 1]), (0.3, [3]), (0.001, [1])])
def test_epochs_end_with_a_smaller_step_and_not_before(corpus, epochs, sizes):
    """An epoch's last batch goes on into the next one; only the last step of all may be smaller."""
    plan = Plan(corpus, TrainSettings(epochs=epochs, batch_size=4), seed=0)
    taken = [plan.sequences(step).tolist() for step in range(1, plan.steps + 1)]
    assert [len(rows) for rows in taken] == sizes
    counts = np.bincount(np.concatenate(taken), minlength=10)
    assert counts.max() - counts.min() <= 1


def test_max_steps_are_full_steps_over_as_many_epochs_as_they_need(corpus):
    """An epoch may end within a step."""
    count = len(corpus.sequences)
    plan = Plan(corpus, TrainSettings(max_steps=3, batch_size=count - 1), seed=0)
    assert plan.steps == 3
    for step in range(1, 4):
        assert len(plan.sequences(step)) == count - 1
    everything = np.concatenate([plan.sequences(step) for step in range(1, 4)])
    assert set(np.bincount(everything).tolist()) <= {2, 3}


def test_a_step_has_no_more_sequences_than_there_are(corpus):
    """The usual size is all of them then; a size that somebody chose is refused."""
    count = len(corpus.sequences)
    assert count < TrainSettings(max_steps=1).batch_size
    assert Plan(corpus, TrainSettings(max_steps=1), seed=0).batch_size == count
    with pytest.raises(UsageError, match=rf"batch_size is {count + 1}, .* {count} sequences"):
        Plan(corpus, TrainSettings(max_steps=1, batch_size=count + 1), seed=0)


def test_a_corpus_gives_rows_by_their_number(corpus):
    """Micro-batches cover the rows that were asked for, and read as written."""
    parts = corpus.assignments(np.array([2, 7, 5]), size=2, tokens=1)
    assert [len(part.sequences) for part in parts] == [2, 1]
    assert {name for part in parts for name in corpus.read(part).ids} == {"row-2", "row-7", "row-5"}
    assert corpus.trained_tokens(np.array([2, 7])) == sum(sum(counting_rows(10)[row][2]) for row in (2, 7))


# Prefetching


def test_everything_is_made_once_and_in_order():
    """Over calls that follow one another, too."""
    made = []
    items = [[number] for number in range(7)]
    prefetch = Prefetch(lambda item: made.append(item[0]) or item[0] * 10)
    assert list(prefetch.each(items[:3], items[3])) == [0, 10, 20]
    assert list(prefetch.each(items[3:], None)) == [30, 40, 50, 60]
    assert made == [0, 1, 2, 3, 4, 5, 6]


def test_the_next_one_is_made_while_the_last_is_used():
    """The first of the next call as well."""
    done = {name: threading.Event() for name in "abc"}
    items = [["a"], ["b"], ["c"]]
    prefetch = Prefetch(lambda item: done[item[0]].set())
    for _ in prefetch.each(items[:1], items[1]):
        assert done["b"].wait(10)
    for _ in prefetch.each(items[1:2], items[2]):
        assert done["c"].wait(10)


def test_another_call_than_the_one_that_was_announced_is_made_as_well():
    """A step that is done again, say."""
    items = [[1], [2]]
    prefetch = Prefetch(lambda item: item[0])
    assert list(prefetch.each(items[:1], items[1])) == [1]
    assert list(prefetch.each(items[:1])) == [1]


def test_an_error_is_raised_where_its_result_would_have_come():
    """Not before: what came earlier is used."""
    prefetch = Prefetch(lambda item: 1 // item[0])
    values = prefetch.each([[1], [0]])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)
