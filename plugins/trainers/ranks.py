"""The processes of one training, and what they exchange besides gradients: flags, sums and paths."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from attrs import field, frozen

# How long the others wait while the first process works alone, such as converting a large checkpoint. A process that
# is gone is noticed long before that, by its connections.
LONGEST_WAIT = timedelta(hours=6)


@frozen
class Ranks:
    """The processes that train together, as one of them sees them.

    Their messages go through the CPUs' network library (gloo) even if gradients go between GPUs, so that no process has
    to wait for a GPU.

    Attributes:
        rank: this process's number, from 0.
        size: number of processes.
        group: of torch.distributed; None for a single process.
    """

    rank: int = 0
    size: int = 1
    group: Any = field(default=None, repr=False)

    @classmethod
    def joined(cls) -> Ranks:
        """The processes of torch.distributed's default group, which must exist."""
        distributed = torch.distributed
        group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes shared files."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; all of them must call this."""
        if self.size == 1:
            return flag
        seen = torch.tensor([int(flag)])
        torch.distributed.all_reduce(seen, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(seen.item())

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64)
        torch.distributed.all_reduce(total, group=self.group)
        return [float(value) for value in total.tolist()]

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their numbers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: Any) -> Any:
        """The value of the first process, in all of them."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def wait(self) -> None:
        """Wait until every process calls this."""
        if self.size > 1:
            torch.distributed.barrier(group=self.group)
