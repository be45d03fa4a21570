"""The processes of one training, and the little that they tell one another beside gradients: flags, sums, paths."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from attrs import field, frozen

# So long the others wait for what the first process does alone, as bringing a large checkpoint into another form. One
# that is gone is noticed long before, by its connections.
LONGEST_WAIT = timedelta(hours=6)


@frozen
class Ranks:
    """The processes that train together, as one of them sees them.

    What they say goes through the processors' network library (gloo) even where gradients go between GPUs: no GPU has
    to be waited for.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        group: of torch.distributed; None where there is one process.
    """

    rank: int = 0
    size: int = 1
    group: Any = field(default=None, repr=False)

    @classmethod
    def joined(cls) -> Ranks:
        """The processes of torch.distributed's default group, which is there already."""
        distributed = torch.distributed
        group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what all of them share."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether one of the processes says so; all of them have to ask."""
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
        """What each process says, in the order of their numbers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def told(self, value: Any) -> Any:
        """What the first process says."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            torch.distributed.barrier(group=self.group)
