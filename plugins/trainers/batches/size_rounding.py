"""Sizes that come again: a kernel's library makes its products anew for each shape that it has not met.

oneDNN needs 1 to 30 ms for it in bfloat16, which is longer than a product takes.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Size = TypeVar("Size", int, NDArray[np.int64])


def round_size(size: Size) -> Size:
    """A size of 1 or more, or each of several: itself, or the next of sixteen sizes between two powers of two."""
    steps = np.maximum(1, (1 << (np.frexp(size)[1] - 1)) >> 4)
    rounded: Size = -(-size // steps) * steps
    return rounded
