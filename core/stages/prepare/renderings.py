"""Renderings that are kept before anyone knows which examples stay.

Whether an example has come before is seen only by who sees all of the data. A job that sees a part of them renders what
may stay; whoever writes the tokens finds the rendering of what does, and need not make it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.errors import RowError
from modelwright.core.api.records import Example, digest_json
from modelwright.core.chat.renderer import Rendered, Renderer, Span, Turns
from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare import reading
from modelwright.core.stages.prepare.cache import ENTRY, Store
from modelwright.core.stages.prepare.pool import Tick

# Counts up when the same examples give another file.
VERSION = 1
KIND, RENDERINGS = "renderings", "renderings.jsonl"
EXAMPLES_BETWEEN = 200


@frozen
class RenderAhead:
    """Makes of a shard of read examples (see `reading`) an entry of the store, with a line for each of them in order.

    The line is a JSON array of the example's renderings, each `[ids, [[kind, message, start, end], …], anomalies]`; the
    reason why the template refuses it, as a string; or null where the example goes for a reason of its own.

    Attributes:
        tokenizer: the folder of the one renderer.
        fingerprint: the renderer's.
        turns: which assistant turns are trained.
        store: keeps the entries.
    """

    tokenizer: Path
    fingerprint: str
    turns: Turns
    store: Store

    @contextlib.contextmanager
    def opened(self, plugins: Plugins | None) -> Iterator[Callable[[Path, Tick], Path]]:  # noqa: ARG002 - see `Job`
        """See `Job`."""
        renderer = Renderer.from_folder(self.tokenizer)

        def render(entry: Path, tick: Tick) -> Path:
            key = _key(self.fingerprint, self.turns, entry)
            return self.store.make(KIND, key, lambda folder: self._write(renderer, entry, folder, tick))

        yield render

    def _write(self, renderer: Renderer, entry: Path, folder: Path, tick: Tick) -> None:
        going = files.read_json(entry / reading.FACTS)["verdicts"].keys()
        with (entry / reading.EXAMPLES).open("rb") as examples, (folder / RENDERINGS).open("wb") as file:
            for number, line in enumerate(examples):
                if number % EXAMPLES_BETWEEN == 0:
                    tick()
                rendered = None if str(number) in going else self._rendered(renderer, line)
                file.write(orjson.dumps(rendered, option=orjson.OPT_APPEND_NEWLINE))

    def _rendered(self, renderer: Renderer, line: bytes) -> Any:
        try:
            turns = renderer.train(Example.from_row(orjson.loads(line)), self.turns)
        except RowError as error:
            return str(error)
        return [[one.ids, [[s.kind, s.message, s.start, s.end] for s in one.spans], one.anomalies] for one in turns]


class ShardRenderer:
    """Renders the examples of a shard that stay, in their order: from what is kept, where it is.

    Args:
        renderer: makes what is not kept.
        turns: which assistant turns are trained.
        store: where renderings may be.
        entry: the shard's examples, of which some may have gone; None where they are in no store.
    """

    def __init__(self, renderer: Renderer, turns: Turns, store: Store, entry: Path | None) -> None:
        self._renderer = renderer
        self._turns = turns
        self._kept: Iterator[tuple[bytes, bytes]] = iter(())
        if entry is not None and (kept := store.get(KIND, _key(renderer.fingerprint, turns, entry))) is not None:
            self._kept = _lines(entry / reading.EXAMPLES, kept / RENDERINGS)

    def train(self, line: bytes, example: Example) -> list[Rendered]:
        """As `Renderer.train`.

        Args:
            line: the example as it stands in its file.
            example: the same, read.

        Raises:
            As `Renderer.train`.
        """
        kept = next((rendered for before, rendered in self._kept if before == line), b"null")
        value = orjson.loads(kept)
        if value is None:
            return self._renderer.train(example, self._turns)
        if isinstance(value, str):
            raise RowError(value)
        return [
            Rendered(ids=tuple(ids), spans=tuple(Span(*span) for span in spans), anomalies=tuple(anomalies), text="")
            for ids, spans, anomalies in value
        ]


def _key(fingerprint: str, turns: Turns, entry: Path) -> str:
    return digest_json([VERSION, fingerprint, turns, files.read_json(entry / ENTRY)[reading.EXAMPLES]["sha256"]])


def _lines(examples: Path, renderings: Path) -> Iterator[tuple[bytes, bytes]]:
    with examples.open("rb") as before, renderings.open("rb") as after:
        yield from zip(before, after, strict=True)
