"""Deduplication: remove examples that repeat an earlier one, exactly or nearly; and apply the verdicts of the checks.

Near-duplicates are found by the runs of words that two texts share (Jaccard's index), which MinHash estimates.
Source: A. Z. Broder, "On the resemblance and containment of documents" (1997).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelwright.core.api.files import json_line
from modelwright.core.api.records import Example
from modelwright.core.extras import check_installed
from modelwright.core.stages.prepare.cache import link
from modelwright.core.stages.prepare.checks import Removal, whole, words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DUPLICATE, NEAR = "duplicate", "near-duplicate"
# A place in the data is the number of the shard times this, plus the number of the example in it.
_IN_SHARD = 2**32
# Words in a run. Three, so that order counts and one changed number in a short problem makes it a different problem.
RUN = 3
ALIKE = 0.8
PERMUTATIONS = 128


def check_datasketch() -> None:
    """Check that datasketch is installed, without importing it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    check_installed("datasketch", what="near-duplicate removal", extra="quality")


class NearDuplicates:
    """Finds examples that are nearly the same as an earlier one; call `check_datasketch` before."""

    name = NEAR

    def __init__(self) -> None:
        import datasketch

        self._library: Any = datasketch
        self._index = datasketch.MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS)
        self._kept: list[tuple[Any, str]] = []

    def check(self, example: Example) -> Removal | None:
        """See `Check`."""
        text = whole(example)
        sketch = self._sketch(text)
        # Name the earliest: the index returns keys in the order of their hashes, which differs between processes.
        for key in sorted(self._index.query(sketch)):
            other, source = self._kept[key]
            similarity = float(sketch.jaccard(other))
            if similarity >= ALIKE:
                facts = {"other": source, "similarity": round(similarity, 4), "text": text}
                return Removal(f"nearly the same as {source}", facts)
        self._index.insert(len(self._kept), sketch)
        self._kept.append((sketch, example.source))
        return None

    def _sketch(self, text: str) -> Any:
        said = words(text)
        runs = {" ".join(said[start : start + RUN]) for start in range(max(1, len(said) - RUN + 1))}
        sketch = self._library.MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in sorted(runs)])
        return sketch


class Seen:
    """Remembers which contents occurred, and where first, in 16 bytes for each content.

    A content is identified by the 64 bits of `Example.id`, its place by a number of the caller's. They are stored in
    sorted levels, each less than half as long as the one before it, like a log-structured merge tree.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def first(self, ids: Sequence[str], places: Sequence[int]) -> NDArray[np.int64]:
        """Where each of these contents occurred first, int64 `[ids]`; new ones are added with their first place."""
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


class Deduplicator:
    """Filters shards of examples, which must come in order.

    Args:
        deduplicate: see `[data.quality]`.
        removed: the file that gets a line for each removed example.

    Attributes:
        counts: the number of removed examples by the name of the check.
    """

    def __init__(self, deduplicate: Literal["exact", "near", False], removed: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._seen = Seen() if deduplicate else None
        self._near = NearDuplicates() if deduplicate == "near" else None
        self._removed = removed
        self._origins: list[tuple[str, Sequence[int]]] = []

    def filter(self, file: str, facts: Mapping[str, Any], examples: Path, target: Path) -> int:
        """Write the examples that are kept to `target`, which is not created if there are none.

        Args:
            file: the file that the rows of the shard are from.
            facts: the facts of the shard; see `reading`.
            examples: its examples, as interchange JSONL.
            target: a file that does not exist yet.

        Returns:
            The number of examples that are kept.
        """
        removals = {
            int(number): (check, Removal(why, more)) for number, (check, why, more) in facts["verdicts"].items()
        }
        removals |= self._duplicates(file, facts)
        if self._near is not None:
            removals |= self._almost(examples, removals)
        kept_count = len(facts["ids"]) - len(removals)
        if not removals and kept_count:
            link(examples, target)
        elif removals:
            self._write(examples, removals, target if kept_count else None)
        return kept_count

    def _duplicates(self, file: str, facts: Mapping[str, Any]) -> dict[int, tuple[str, Removal]]:
        if self._seen is None:
            return {}
        shard, count = len(self._origins), len(facts["ids"])
        self._origins.append((file, _compact(facts["lines"])))
        own = range(shard * _IN_SHARD, shard * _IN_SHARD + count)
        first = self._seen.first(facts["ids"], own).tolist()
        found = {}
        for number, (place, before) in enumerate(zip(own, first, strict=True)):
            if before != place:
                source = self._source(before)
                found[number] = (DUPLICATE, Removal(f"duplicate of {source}", {"other": source}))
        return found

    def _source(self, place: int) -> str:
        file, lines = self._origins[place // _IN_SHARD]
        return f"{file}:{lines[place % _IN_SHARD]}"

    def _almost(self, examples: Path, removals: Mapping[int, tuple[str, Removal]]) -> dict[int, tuple[str, Removal]]:
        assert self._near is not None
        found = {}
        with examples.open("rb") as file:
            for number, line in enumerate(file):
                if number in removals:  # a removed example is not a reason to remove another
                    continue
                removal = self._near.check(Example.from_row(json.loads(line)))
                if removal is not None:
                    found[number] = (NEAR, removal)
        return found

    def _write(self, examples: Path, removals: Mapping[int, tuple[str, Removal]], target: Path | None) -> None:
        kept = bytearray()
        with examples.open("rb") as file, self._removed.open("ab") as removed:
            for number, line in enumerate(file):
                if number not in removals:
                    kept += line
                    continue
                check, removal = removals[number]
                self.counts[check] += 1
                row = json.loads(line)
                line_out = {"check": check, "id": row["id"], "source": row["source"], "reason": removal.reason}
                removed.write(json_line({**line_out, **removal.facts}).encode("utf-8"))
        if target is not None:
            target.write_bytes(kept)


def _compact(lines: Sequence[int]) -> Sequence[int]:
    """The same numbers in little memory: consecutive ones are a range."""
    if lines and all(after - before == 1 for before, after in pairwise(lines)):
        return range(lines[0], lines[-1] + 1)
    import array

    return array.array("q", lines)
