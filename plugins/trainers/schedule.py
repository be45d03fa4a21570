"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def warmup_steps(steps: int, warmup: float) -> int:
    """How many of `steps` rise to the peak, for the share `warmup` of them."""
    return round(warmup * steps)


def factor(step: int, *, steps: int, warmup: int, schedule: Schedule) -> float:
    """The share of the peak learning rate that optimiser step `step` (1 to `steps`) takes.

    With `W` warm-up steps out of `N`, and `p = (step - W - 1) / (N - W)`:

        step <= W    step / (W + 1)
        cosine       (1 + cos(pi * p)) / 2
        linear       1 - p
        constant     1

    The line from 0 meets the peak exactly at step `W + 1`, and the decay would reach 0 at step `N + 1`: no step is
    spent on a rate of 0. The cosine is that of I. Loshchilov and F. Hutter, "SGDR", ICLR 2017, without restarts.
    """
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - warmup - 1) / (steps - warmup)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if schedule == "linear" else 1.0
