"""The numbers of a prepared folder are those of its rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.stages.prepare.statistics import _histogram, _quantiles

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=200)


@given(LENGTHS)
def test_every_row_is_in_one_bin_that_holds_its_length(lengths):
    """Bins are powers of two from 16 to the first that holds the longest."""
    bins = _histogram(np.array(lengths, dtype=np.int32))
    edges = list(bins)
    assert sum(bins.values()) == len(lengths)
    assert edges[-1] >= max(lengths)
    assert len(edges) == 1 or edges[-2] < max(lengths)
    for low, high in zip([0, *edges], edges, strict=False):
        assert bins[high] == sum(low < length <= high for length in lengths)


@given(LENGTHS)
def test_quantiles_are_lengths_that_rows_have(lengths):
    """At least that share of the rows is no longer."""
    found = _quantiles(np.array(lengths, dtype=np.int32))
    assert (found["min"], found["max"]) == (min(lengths), max(lengths))
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert found[name] in lengths
        assert sum(length <= found[name] for length in lengths) >= share * (len(lengths) - 1)


@pytest.mark.parametrize("count", [_quantiles, _histogram])
def test_no_rows_are_no_error(count):
    """A run whose rows are all held out has none."""
    assert sum(count(np.array([], dtype=np.int32)).values()) == 0
