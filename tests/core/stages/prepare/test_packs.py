"""Packs: every row in one of them, none too long, and hardly a place empty."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import TokenFolder
from modelwright.core.stages.prepare import packs as packing
from modelwright.core.stages.prepare.packs import pack_window, write_packs
from modelwright.core.testing.trainer import write_token_folder

max_lengths = st.integers(1, 70)


@st.composite
def windows(draw):
    max_length = draw(max_lengths)
    return np.array(draw(st.lists(st.integers(1, max_length), max_size=120)), np.int32), max_length


@given(windows())
def test_every_row_is_in_one_pack_and_no_pack_is_too_long(window):
    """Rows are in their order, packs in that of their first rows."""
    lengths, max_length = window
    packs = list(pack_window(lengths, max_length))
    assert sorted(itertools.chain(*packs)) == list(range(len(lengths)))
    assert all(lengths[pack].sum() <= max_length for pack in packs)
    assert all(pack == sorted(pack) for pack in packs)
    assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)


@given(windows())
def test_no_two_packs_could_be_one(window):
    """The two emptiest packs hold more than one pack takes, so at most one pack is half empty."""
    lengths, max_length = window
    held = sorted(int(lengths[pack].sum()) for pack in pack_window(lengths, max_length))
    assert len(held) < 2 or held[0] + held[1] > max_length


@given(windows())
def test_each_row_fills_the_pack_that_it_fits_best(window):
    """As a plain loop over all open packs does it: the numbers of tokens in the packs are the same."""
    lengths, max_length = window
    plain: list[int] = []
    for need in sorted(lengths.tolist(), reverse=True):
        fitting = [pack for pack, held in enumerate(plain) if held + need <= max_length]
        if fitting:
            plain[max(fitting, key=plain.__getitem__)] += need
        else:
            plain.append(need)
    assert sorted(int(lengths[pack].sum()) for pack in pack_window(lengths, max_length)) == sorted(plain)


@given(windows())
def test_the_packs_are_a_function_of_the_lengths(window):
    """The same lengths give the same packs."""
    assert list(pack_window(*window)) == list(pack_window(*window))


def test_the_drawing_is_true():
    """The example at the top of the module."""
    assert list(pack_window(np.array([5, 4, 3, 2, 2], np.int32), 8)) == [[0, 2], [1, 3, 4]]


def test_packs_are_not_sorted_by_length():
    """Training in that order would see the long examples first."""
    lengths = np.random.default_rng(0).integers(1, 200, 1000).astype(np.int32)
    first = [int(lengths[pack[0]]) for pack in pack_window(lengths, 256)]
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)


@pytest.mark.parametrize("length", [9, 0])
def test_a_row_that_no_pack_takes_is_a_mistake_of_the_caller(wording, length):
    """Preparation has dropped what is too long and what teaches nothing."""
    with pytest.raises(ValueError, match=f"{length} tokens") as caught:
        list(pack_window(np.array([3, length], np.int32), 8))
    wording(caught.value)


def rows_of(lengths):
    return [(f"row-{row}", [row % 50] * length, [True] * length) for row, length in enumerate(lengths)]


def test_windows_are_packed_one_after_the_other(tmp_path, monkeypatch):
    """Row numbers run on over shards and windows, and a pack has rows of one window."""
    monkeypatch.setattr(packing, "WINDOW", 10)
    lengths = [1 + row * 7 % 13 for row in range(34)]
    folder = write_token_folder(tmp_path / "train", rows_of(lengths), shards=3)
    report = write_packs(folder, 16)
    packs = TokenFolder(folder).packs
    assert sorted(np.concatenate(packs).tolist()) == list(range(34))
    assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)
    assert all(pack[0] // 10 == pack[-1] // 10 for pack in packs)
    assert report.packs == len(packs)
    assert report.filled == pytest.approx(sum(lengths) / (16 * len(packs)))


def test_the_same_rows_give_the_same_file(tmp_path):
    """Byte for byte, however the rows are spread over shards."""
    written = []
    for shards in (1, 4):
        folder = write_token_folder(tmp_path / str(shards), rows_of([1 + row % 9 for row in range(50)]), shards=shards)
        write_packs(folder, 20)
        written.append((folder / "packs.arrow").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("shards", [0, 1])
def test_no_rows_are_no_packs(tmp_path, shards):
    """A run whose rows are all held out has none."""
    folder = write_token_folder(tmp_path / "train", [], shards=shards)
    report = write_packs(folder, 16)
    assert (report.packs, report.filled) == (0, 0.0)
    assert len(TokenFolder(folder).packs) == 0


def test_gsm8k_leaves_hardly_a_place_empty(shared_rows):
    """At 2048 tokens at least 97 % of the places hold one; words and signs take the place of tokens."""
    rows = shared_rows("gsm8k/train.jsonl")
    lengths = np.array([len(re.findall(r"\w+|\S", row["question"] + row["answer"])) for row in rows], np.int32)
    packs = list(pack_window(lengths, 2048))
    assert lengths.sum() / (2048 * len(packs)) >= 0.97
