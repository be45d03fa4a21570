"""Which examples stay: what is said of each alone, and what only their order can tell, that one has come before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from modelwright.core.api.files import json_line
from modelwright.core.api.records import Example
from modelwright.core.stages.prepare.cache import link
from modelwright.core.stages.prepare.near import NearDuplicates
from modelwright.core.stages.prepare.quality import Removal, Seen
from modelwright.core.stages.prepare.reading import EXAMPLES

DUPLICATE, NEAR = "duplicate", NearDuplicates.name
# A place in the data: the shard's number, and the example's in it.
_IN_SHARD = 2**32


class Sifter:
    """Sifts shards of examples, which come in order.

    Args:
        deduplicate: see `[data.quality]`.
        removed: a line for each example that goes is written there.

    Attributes:
        counts: of those that went, by the check's name.
    """

    def __init__(self, deduplicate: Literal["exact", "near", False], removed: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._seen = Seen() if deduplicate else None
        self._near = NearDuplicates() if deduplicate == "near" else None
        self._removed = removed
        self._origins: list[tuple[str, Sequence[int]]] = []

    def sift(self, file: str, facts: Mapping[str, Any], folder: Path, target: Path) -> int:
        """Put the examples that stay into `target`; where none does, it is not made.

        Args:
            file: the one that the shard's rows are from.
            facts: of the shard; see `reading`.
            folder: its entry in the store.
            target: a file that is not there yet.

        Returns:
            How many stay.
        """
        removals = {
            int(number): (check, Removal(why, more)) for number, (check, why, more) in facts["verdicts"].items()
        }
        removals |= self._duplicates(file, facts)
        if self._near is not None:
            removals |= self._almost(folder, removals)
        stay = len(facts["ids"]) - len(removals)
        if not removals and stay:
            link(folder / EXAMPLES, target)
        elif removals:
            self._write(folder, removals, target if stay else None)
        return stay

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
                found[number] = (DUPLICATE, Removal(f"it says the same as {source}", {"other": source}))
        return found

    def _source(self, place: int) -> str:
        file, lines = self._origins[place // _IN_SHARD]
        return f"{file}:{lines[place % _IN_SHARD]}"

    def _almost(self, folder: Path, removals: Mapping[int, tuple[str, Removal]]) -> dict[int, tuple[str, Removal]]:
        assert self._near is not None
        found = {}
        with (folder / EXAMPLES).open("rb") as file:
            for number, line in enumerate(file):
                if number in removals:  # what goes for a reason of its own takes no other with it
                    continue
                removal = self._near.look(Example.from_row(json.loads(line)))
                if removal is not None:
                    found[number] = (NEAR, removal)
        return found

    def _write(self, folder: Path, removals: Mapping[int, tuple[str, Removal]], target: Path | None) -> None:
        kept = bytearray()
        with (folder / EXAMPLES).open("rb") as file, self._removed.open("ab") as removed:
            for number, line in enumerate(file):
                if number not in removals:
                    kept += line
                    continue
                check, removal = removals[number]
                self.counts[check] += 1
                row = json.loads(line)
                told = {"check": check, "id": row["id"], "source": row["source"], "reason": removal.reason}
                removed.write(json_line({**told, **removal.facts}).encode("utf-8"))
        if target is not None:
            target.write_bytes(kept)


def _compact(lines: Sequence[int]) -> Sequence[int]:
    """The same in as little memory as they need: neighbours are a range."""
    if lines and all(after - before == 1 for before, after in pairwise(lines)):
        return range(lines[0], lines[-1] + 1)
    import array

    return array.array("q", lines)
