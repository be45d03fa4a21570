"""Read the next micro-batch while the model computes: what is read lies on a disk, or on the far side of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
    """`map(make, items)`, with the next one being made by a thread while the last one is used.

    What `make` raises is raised where its result would have come.
    """
    if len(items) < 2:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="reading-ahead") as reader:
        coming = reader.submit(make, items[0])
        for item in items[1:]:
            made, coming = coming.result(), reader.submit(make, item)
            yield made
        yield coming.result()
