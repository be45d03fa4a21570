"""What is left out before training: each check looks at one example after the other, and says why it goes.

Nothing goes silently: `removed.jsonl` has a line for each, with what it was compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

from modelwright.core.api.records import Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@frozen
class Removal:
    """Why an example goes.

    Attributes:
        reason: for a person.
        facts: what it was compared with: texts, sources, similarities; JSON values.
    """

    reason: str
    facts: Mapping[str, Any] = field(factory=dict)


class Check(Protocol):
    """One reason for which examples are left out.

    Attributes:
        name: of the reason, for counts.
    """

    name: str

    def look(self, example: Example) -> Removal | None:
        """Why `example` goes; None keeps it. Asked in the order of the data, and of those that other checks kept."""
        ...


def judged(checks: Iterable[Check], example: Example) -> tuple[str, Removal] | None:
    """The first check that has a reason, by name, and its reason; None where all keep the example."""
    for check in checks:
        removal = check.look(example)
        if removal is not None:
            return check.name, removal
    return None


class Seen:
    """Which contents have come, and where first. It takes 16 bytes for each, whatever the contents' size.

    Contents are known by the 64 bits of `Example.id`, places by a number of the caller's. They are kept in sorted
    levels, each less than half as long as the one before it, as a log-structured merge tree keeps them.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def first(self, ids: Sequence[str], places: Sequence[int]) -> NDArray[np.int64]:
        """Where each of these contents came first, int64 `[ids]`; then they have come, too.

        A content that is new came first where it stands here first.
        """
        import numpy as np

        given = np.array([int(each, 16) for each in ids], np.uint64)
        new, index, inverse = np.unique(given, return_index=True, return_inverse=True)
        first = np.array(places, np.int64)[index]
        known = np.zeros(len(new), np.bool_)
        for level, where in self._levels:
            at = np.minimum(np.searchsorted(level, new), len(level) - 1)
            hit = level[at] == new
            first[hit] = where[at[hit]]
            known |= hit
        if not known.all():
            self._add(new[~known], first[~known])
        found: NDArray[np.int64] = first[inverse]
        return found

    def _add(self, ids: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        import numpy as np

        while self._levels and len(self._levels[-1][0]) < 2 * len(ids):
            level, where = self._levels.pop()
            ids, places = np.concatenate([level, ids]), np.concatenate([where, places])
        order = np.argsort(ids)
        self._levels.append((ids[order], places[order]))
