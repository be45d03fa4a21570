"""Near-duplicates: examples that say almost the same as an earlier one are left out.

Two texts are alike by the share that they have in common of their runs of words (Jaccard's index), which MinHash
estimates. Source: A. Z. Broder, "On the resemblance and containment of documents" (1997).
"""

from __future__ import annotations

from typing import Any

from modelwright.core.api.records import Example
from modelwright.core.extras import check_installed
from modelwright.core.stages.prepare.quality import Removal
from modelwright.core.stages.prepare.words import whole, words

# Runs of three words in common: order counts, and one changed number in a short problem makes another problem.
RUN = 3
ALIKE = 0.8
PERMUTATIONS = 128


def check_datasketch() -> None:
    """Find out whether datasketch is installed, without importing it.

    Raises:
        MissingDependencyError: it is not.
    """
    check_installed("datasketch", what="near-duplicate removal", extra="quality")


class NearDuplicates:
    """All but the first of examples that are alike; `check_datasketch` first."""

    name = "near-duplicate"

    def __init__(self) -> None:
        import datasketch

        self._library: Any = datasketch
        self._index = datasketch.MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS)
        self._kept: list[tuple[Any, str]] = []

    def look(self, example: Example) -> Removal | None:
        """See `Check`."""
        text = whole(example)
        sketch = self._sketch(text)
        # The earliest is named: the index gives them in the order of their hashes, which is another in each process.
        for key in sorted(self._index.query(sketch)):
            other, source = self._kept[key]
            similarity = float(sketch.jaccard(other))
            if similarity >= ALIKE:
                facts = {"other": source, "similarity": round(similarity, 4), "text": text}
                return Removal(f"it is almost the same as {source}", facts)
        self._index.insert(len(self._kept), sketch)
        self._kept.append((sketch, example.source))
        return None

    def _sketch(self, text: str) -> Any:
        said = words(text)
        runs = {" ".join(said[start : start + RUN]) for start in range(max(1, len(said) - RUN + 1))}
        sketch = self._library.MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in sorted(runs)])
        return sketch
