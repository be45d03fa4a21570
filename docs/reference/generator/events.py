"""events.md: the envelope, and each kind of event with its fields, as core/runs/events.py declares them."""

from __future__ import annotations

from generator.text import code, page, read_doc, sentence, table
from modelwright.core.runs import events as source
from modelwright.core.runs.events import Event

_INTRODUCTION = """
A run reports its progress as events: JSON lines in the folder `events` of the run, one file for each process that
writes. The terminal's progress display, loss curves and trackers read these files. `modelwright.core.runs.events` reads
them in order and leaves out what a resumed stage repeated:

```python
from pathlib import Path
from modelwright.core.runs.events import read_events

for event in read_events(Path(".modelwright/runs/first-model/events"), stage="train"):
    if event.kind == "step":
        print(event.data["step"], event.data["loss"])
```
"""

_KINDS = """
In the order in which a run writes them. A trainer from another package may write kinds and fields of its own. Numbers
that are not finite are written as null.
"""


def events() -> str:
    """The page."""
    meanings = read_doc(Event).entries["Attributes"]
    rows = [(code(name), sentence(text)) for name, text in meanings.items()]
    return page(
        "# Events",
        _INTRODUCTION,
        "## Envelope",
        f"Version {source.VERSION}.",
        table(("key", "meaning"), rows),
        "## Kinds",
        _KINDS,
        *(_kind(name, kind) for name, kind in source.KINDS.items()),
    )


def _kind(name: str, kind: source.Kind) -> str:
    rows = [(code(key), "always", text) for key, text in kind.fields.items()]
    rows += [(code(key), "sometimes", text) for key, text in kind.sometimes.items()]
    return page(f"### {code(name)}", kind.meaning, table(("field", "there", "meaning"), rows) if rows else "")
