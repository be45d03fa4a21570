"""Sizes are rounded up to few, and by little."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelwright.plugins.trainers.batches.size_rounding import round_size


@given(st.integers(1, 10**9))
def test_a_size_grows_by_less_than_a_sixteenth(size):
    """To a number of five binary digits and zeros, of which there are sixteen between two powers of two."""
    rounded = round_size(size)
    assert size <= rounded < size + max(1, size / 16)
    assert round_size(rounded) == rounded
    assert rounded >> max(0, int(rounded).bit_length() - 5) << max(0, int(rounded).bit_length() - 5) == rounded


def test_many_sizes_are_rounded_at_once():
    assert round_size(np.array([1, 31, 32, 33, 65, 5056])).tolist() == [1, 31, 32, 34, 68, 5120]
