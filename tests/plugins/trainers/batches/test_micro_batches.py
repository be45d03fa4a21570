"""Which sequences a micro-batch holds, the tensors that it becomes, and rounded sizes."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import TokenRow
from modelwright.plugins.trainers.batches.micro_batches import collate, micro_batches, round_size

token_rows = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=12).map(
        lambda pairs: ("id", [token for token, _ in pairs], [trained for _, trained in pairs])
    ),
    max_size=12,
)


@given(st.integers(1, 10**9))
def test_a_size_grows_by_less_than_a_sixteenth(size):
    """To a number of five binary digits and zeros, of which there are sixteen between two powers of two."""
    rounded = round_size(size)
    assert size <= rounded < size + max(1, size / 16)
    assert round_size(rounded) == rounded
    assert rounded >> max(0, int(rounded).bit_length() - 5) << max(0, int(rounded).bit_length() - 5) == rounded


def test_many_sizes_are_rounded_at_once():
    assert round_size(np.array([1, 31, 32, 33, 65, 5056])).tolist() == [1, 31, 32, 34, 68, 5120]


@given(rows=token_rows.map(lambda rows: [row for row in rows if row[1]]).filter(bool))
def test_a_micro_batch_asks_for_each_trained_token_from_the_place_before_it(rows):
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


@given(st.lists(st.integers(20, 400), min_size=8, max_size=64), st.sampled_from([1, 2, 4]))
def test_little_of_what_is_computed_is_padding(lengths, ranks):
    """Sequences of one pass are of like length, or together no more than a small share of what may be."""
    lengths = np.array(lengths, np.int64)
    for dealt in micro_batches(lengths, size=None, tokens=8192, ranks=ranks):
        for part in dealt:
            if len(part):
                places = len(part) * lengths[part].max()
                assert lengths[part].min() >= 0.75 * lengths[np.concatenate(dealt)].max() or places <= 8192 // 8


documents = st.lists(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=40), min_size=1, max_size=6
)


@given(st.lists(documents, min_size=1, max_size=4))
def test_end_to_end_every_token_is_predicted_from_its_own_document(packs):
    """Positions start again in each document and in the padding."""
    rows = [
        TokenRow("id", np.array([t for t, _ in row], np.int32), np.array([t for _, t in row]))
        for pack in packs
        for row in pack
    ]
    batch = collate([[row] for row in rows], end_to_end=True)
    predicted, positions, start = [], [], 0
    for row in rows:
        tokens = zip(row.input_ids.tolist(), row.trained.tolist(), strict=True)
        predicted += [(start + at - 1, token) for at, (token, trained) in enumerate(tokens) if at and trained]
        start += len(row.input_ids)
        positions += range(len(row.input_ids))
    longest = max(len(row.input_ids) for row in rows)
    positions += [place % longest for place in range(round_size(start) - start)]
    assert batch.position_ids.tolist() == [positions]
    assert list(zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)) == predicted
    assert batch.attention_mask is None
    assert batch.tokens == start


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(1, 400),
    st.integers(1, 5),
)
def test_micro_batches_end_to_end_keep_their_limit(lengths, size, tokens, ranks):
    """With their padding; but for a single sequence that is longer alone. None could have held the next one too."""
    lengths = np.array(lengths, np.int64)
    rounds = list(micro_batches(lengths, size=size, tokens=tokens, ranks=ranks, end_to_end=True))
    parts = [part for dealt in rounds for part in dealt if len(part)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    for part in parts:
        if size is not None:
            assert len(part) <= size
        else:
            assert len(part) == 1 or round_size(lengths[part].sum()) <= tokens
    if size is None:
        for dealt, then in itertools.pairwise(rounds):
            more = lengths[np.append(dealt[0], then[0][0])].sum()
            assert round_size(more) > tokens
