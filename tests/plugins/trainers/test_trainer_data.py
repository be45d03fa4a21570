"""What each optimiser step sees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import TokenFolder, TokenRow, TrainSettings, UsageError
from modelwright.core.testing.trainer import counting_rows, write_token_folder
from modelwright.plugins.trainers.batches.data import Corpus, Plan, SequenceOrder, collate, micro_batches
from modelwright.plugins.trainers.ranks import Ranks

token_rows = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=12).map(
        lambda pairs: ("id", [token for token, _ in pairs], [trained for _, trained in pairs])
    ),
    max_size=12,
)


@given(rows=token_rows)
def test_a_token_file_counts_what_its_rows_teach(rows, tmp_path_factory):
    """The counts are those of a plain loop, whatever is empty."""
    file = TokenFolder(write_token_folder(tmp_path_factory.mktemp("tokens") / "rows", rows))
    assert file.supervised().tolist() == [sum(trained[1:]) for _, _, trained in rows]
    assert file.lengths().tolist() == [len(ids) for _, ids, _ in rows]
    assert file.largest_token() == max((token for _, ids, _ in rows for token in ids), default=-1)


@given(rows=token_rows.map(lambda rows: [row for row in rows if row[1]]).filter(bool))
def test_a_micro_batch_asks_for_each_supervised_token_from_the_place_before_it(rows):
    """Positions and targets are those of a plain loop; padding is masked and never asked for."""
    batch = collate([[TokenRow(name, np.array(ids, np.int32), np.array(trained))] for name, ids, trained in rows])
    width = max(len(ids) for _, ids, _ in rows)
    expected = [
        (row * width + place - 1, ids[place])
        for row, (_, ids, trained) in enumerate(rows)
        for place in range(1, len(ids))
        if trained[place]
    ]
    assert list(zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)) == expected
    assert batch.tokens == sum(len(ids) for _, ids, _ in rows)
    lengths = [len(ids) for _, ids, _ in rows]
    if batch.attention_mask is None:
        assert len(set(lengths)) == 1
    else:
        assert batch.attention_mask.tolist() == [[1] * length + [0] * (width - length) for length in lengths]
    assert [ids[: len(row[1])] for ids, row in zip(batch.input_ids.tolist(), rows, strict=True)] == [
        row[1] for row in rows
    ]


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


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 200),
    st.integers(1, 5),
)
def test_micro_batches_hold_every_sequence_once_and_keep_their_limit(lengths, size, tokens, ranks):
    """By number where it is given, else by tokens with padding, but for a single sequence that is longer alone."""
    lengths = np.array(lengths, np.int64)
    rounds = list(micro_batches(lengths, size=size, tokens=tokens, ranks=ranks))
    assert all(len(dealt) == ranks and len(dealt[0]) for dealt in rounds)
    parts = [part for dealt in rounds for part in dealt if len(part)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    for part in parts:
        if size is not None:
            assert len(part) <= size
        else:
            assert len(part) == 1 or len(part) * lengths[part].max() <= tokens
    sizes = [[len(part) for part in dealt] for dealt in rounds]
    assert all(max(each) - min(each) <= 1 for each in sizes), "no process has much more to do than another"
    for dealt, then in itertools.pairwise(rounds):
        assert lengths[np.concatenate(dealt)].min() >= lengths[np.concatenate(then)].max()


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 4, 12])
def test_processes_take_as_many_passes_each_and_together_every_sequence_once(tmp_path, count, ranks, size):
    """Who has nothing left computes along with what does not count: collective operations must meet."""
    corpus = Corpus(write_token_folder(tmp_path / "rows", counting_rows(count)))
    shares = [corpus.parts(corpus.sequences, Ranks(rank, ranks), size=size, tokens=30) for rank in range(ranks)]
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
    with pytest.raises(UsageError, match=rf"batch_size is {count + 1}, and there are {count} sequences to train on"):
        Plan(corpus, TrainSettings(max_steps=1, batch_size=count + 1), seed=0)


def test_a_corpus_gives_rows_by_their_number(corpus):
    """Micro-batches cover the rows that were asked for, and read as written."""
    parts = corpus.parts(np.array([2, 7, 5]), Ranks(), size=2, tokens=1)
    assert [len(part.sequences) for part in parts] == [2, 1]
    assert {name for part in parts for name in corpus.read(part).ids} == {"row-2", "row-7", "row-5"}
    assert corpus.supervised(np.array([2, 7])) == sum(sum(counting_rows(10)[row][2]) for row in (2, 7))


@given(st.lists(st.integers(20, 400), min_size=8, max_size=64), st.sampled_from([1, 2, 4]))
def test_little_of_what_is_computed_is_padding(lengths, ranks):
    """Sequences of one pass are of like length, or together no more than a small share of what may be."""
    lengths = np.array(lengths, np.int64)
    for dealt in micro_batches(lengths, size=None, tokens=8192, ranks=ranks):
        for part in dealt:
            if len(part):
                places = len(part) * lengths[part].max()
                assert lengths[part].min() >= 0.75 * lengths[np.concatenate(dealt)].max() or places <= 8192 // 8
