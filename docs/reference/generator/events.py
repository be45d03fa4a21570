"""events.md: the envelope, and each kind of event with what it tells, found where it is emitted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from generator.text import code, page, read_doc, sentence, table
from modelwright.core.runs import events as source
from modelwright.core.runs.events import Event

REPOSITORY = Path(__file__).parents[3]

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
The data of a kind may have more keys than those listed; a trainer of somebody else may emit kinds of its own. Figures
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
        table(("kind", "written by", "data, where it is fixed"), _kinds()),
    )


def _kinds() -> Iterator[tuple[str, str, str]]:
    found: dict[str, tuple[set[str], list[str]]] = {}
    for path in sorted([*REPOSITORY.glob("core/**/*.py"), *REPOSITORY.glob("plugins/**/*.py")]):
        for kind, keys in _emitted(ast.parse(path.read_text(encoding="utf-8"))):
            places, known = found.setdefault(kind, (set(), []))
            places.add(path.relative_to(REPOSITORY).as_posix())
            known.extend(key for key in keys if key not in known)
    for kind, (places, keys) in sorted(found.items()):
        yield code(kind), ", ".join(map(code, sorted(places))), ", ".join(map(code, keys))


def _emitted(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """The kinds in calls of `emit`, each with the keys of the data that stand there."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or len(call.args) != 2:
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name.lstrip("_") != "emit":
            continue
        keys = [str(key.value) for node in ast.walk(call.args[1]) for key in _keys(node)]
        for kind in _constants(call.args[0]):
            yield kind, keys


def _keys(node: ast.AST) -> list[ast.Constant]:
    return [key for key in node.keys if isinstance(key, ast.Constant)] if isinstance(node, ast.Dict) else []


def _constants(node: ast.AST) -> list[str]:
    if isinstance(node, ast.IfExp):
        return [*_constants(node.body), *_constants(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
