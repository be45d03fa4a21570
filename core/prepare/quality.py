"""What is left out before training: each check looks at one example after the other, and says why it goes.

Nothing goes silently: `removed.jsonl` has a line for each, with what it was compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field, frozen

from modelwright.core.api.files import json_line
from modelwright.core.api.records import Example


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


class Duplicates:
    """All but the first example of each content, by its id."""

    name = "duplicate"

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def look(self, example: Example) -> Removal | None:
        """See `Check`."""
        if example.id not in self._seen:
            self._seen[example.id] = example.source
            return None
        first = self._seen[example.id]
        return Removal(f"it says the same as {first}", {"other": first})


@define
class Quality:
    """The checks of a run, and what they have left out so far.

    Attributes:
        checks: asked one after the other, until one has a reason.
        path: where each removal is written down; None only counts.
        counts: removals by the check's name.
    """

    checks: Iterable[Check]
    path: Path | None = None
    counts: Counter[str] = field(factory=Counter)

    def keep(self, example: Example) -> bool:
        """Whether an example stays."""
        for check in self.checks:
            removal = check.look(example)
            if removal is not None:
                self.counts[check.name] += 1
                self._write(check.name, example, removal)
                return False
        return True

    def _write(self, name: str, example: Example, removal: Removal) -> None:
        if self.path is None:
            return
        line = {"check": name, "id": example.id, "source": example.source, "reason": removal.reason, **removal.facts}
        with self.path.open("ab") as file:
            file.write(json_line(line).encode("utf-8"))
