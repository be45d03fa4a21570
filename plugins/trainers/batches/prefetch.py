"""Make the next thing while the last one is used: what is read lies on a disk, or on the far side of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Ahead(Generic[Item, Made]):
    """`map(make, items)`, with the next one being made by a thread; from one call to the next, too.

    What `make` raises is raised where its result would have come.

    Args:
        make: what is done to each item.
    """

    def __init__(self, make: Callable[[Item], Made]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming: tuple[Item, Future[Made]] | None = None

    def each(self, items: Sequence[Item], after: Item | None = None) -> Iterator[Made]:
        """What is made of each item.

        Args:
            items: in this order.
            after: the first one of the next call, where it is known; that very object.
        """
        for item, following in zip(items, [*items[1:], after], strict=True):
            made = self._future(item).result()
            self._coming = None if following is None else (following, self._thread.submit(self._make, following))
            yield made

    def _future(self, item: Item) -> Future[Made]:
        if self._coming is not None and self._coming[0] is item:
            return self._coming[1]
        return self._thread.submit(self._make, item)
