"""The second half of preparing, shard by shard: examples to token rows, with counts of what is trained.

Jobs that see only some shards do not know which examples are duplicates, so they render all that may be kept and cache
the renderings (`RenderAhead`). The job that writes the token rows (`RenderExamples`) reuses them.
"""

from __future__ import annotations

import array
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from attrs import define, field, frozen

from modelwright.core.api import files
from modelwright.core.api.errors import RowError
from modelwright.core.api.records import Example, digest_json
from modelwright.core.chat.renderer import Rendered, Renderer, Span, Turns
from modelwright.core.extras import require
from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare import reading
from modelwright.core.stages.prepare.cache import ENTRY, Cache
from modelwright.core.stages.prepare.examples import Rejected
from modelwright.core.stages.prepare.pool import Tick
from modelwright.core.stages.prepare.sources import Row, share

# Raise these when the same examples give other token rows, or another file of renderings, than before.
TOKENS_VERSION = 5
RENDERINGS_VERSION = 2
TOKENS, RENDERINGS = "tokens", "renderings"
RENDERINGS_FILE = "renderings.jsonl"
TRAIN, HOLDOUT = "train.arrow", "holdout.arrow"
REJECTED, DROPPED, FACTS = "rejected.jsonl", "dropped.jsonl", "facts.json"
EXAMPLES_BETWEEN = 200


@frozen
class RenderAhead:
    """Turns the examples of a shard (see `reading`) into a cache entry with a line for each example, in order.

    The line is a JSON array of the example's renderings, each `[ids, [[kind, message, start, end], …], anomalies]`; or
    a string, the reason why the template rejects the example; or null if a check removed the example.

    Attributes:
        tokenizer: the folder of the renderer.
        fingerprint: that of the renderer.
        turns: which assistant turns are trained.
        cache: stores the entries.
        empty_thinking: as `Renderer`.
    """

    tokenizer: Path
    fingerprint: str
    turns: Turns
    cache: Cache
    empty_thinking: bool = False

    @contextlib.contextmanager
    def opened(self, plugins: Plugins | None) -> Iterator[Callable[[Path, Tick], Path]]:  # noqa: ARG002 - see `Job`
        """See `Job`."""
        renderer = Renderer.from_folder(self.tokenizer, empty_thinking=self.empty_thinking)

        def render(entry: Path, tick: Tick) -> Path:
            key = _key(renderer, self.turns, entry)
            return self.cache.make(RENDERINGS, key, lambda folder: self._write(renderer, entry, folder, tick))

        yield render

    def _write(self, renderer: Renderer, entry: Path, folder: Path, tick: Tick) -> None:
        going = files.read_json(entry / reading.FACTS)["verdicts"].keys()
        with (entry / reading.EXAMPLES).open("rb") as examples, (folder / RENDERINGS_FILE).open("wb") as file:
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
    """Renders the kept examples of a shard, in order; reuses cached renderings.

    Args:
        renderer: renders what is not cached.
        turns: which assistant turns are trained.
        cache: where cached renderings may be.
        entry: the cache entry with all examples of the shard; None if there is none.
    """

    def __init__(self, renderer: Renderer, turns: Turns, cache: Cache, entry: Path | None) -> None:
        self._renderer = renderer
        self._turns = turns
        self._kept: Iterator[tuple[bytes, bytes]] = iter(())
        if entry is not None and (kept := cache.get(RENDERINGS, _key(renderer, turns, entry))) is not None:
            self._kept = _lines(entry / reading.EXAMPLES, kept / RENDERINGS_FILE)

    def train(self, line: bytes, example: Example) -> list[Rendered]:
        """As `Renderer.train`.

        Args:
            line: the line of the example in its file.
            example: the same, parsed.

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


def _key(renderer: Renderer, turns: Turns, entry: Path) -> str:
    examples = files.read_json(entry / ENTRY)[reading.EXAMPLES]["sha256"]
    return digest_json([RENDERINGS_VERSION, renderer.fingerprint, renderer.empty_thinking, turns, examples])


def _lines(examples: Path, renderings: Path) -> Iterator[tuple[bytes, bytes]]:
    with examples.open("rb") as before, renderings.open("rb") as after:
        yield from zip(before, after, strict=True)


class TokenWriter:
    """Collects token rows and writes them as a shard file for `modelwright.TokenFolder`."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._tokens = array.array("i")
        self._ends = array.array("i", [0])
        self._trained: list[tuple[int, int]] = []

    def add(self, example_id: str, rendered: Rendered, source: str) -> None:
        """Add a row; `source` is the file of its example."""
        begin = len(self._tokens)
        self._ids.append(example_id)
        self._sources.append(source)
        self._tokens.extend(rendered.ids)
        self._ends.append(len(self._tokens))
        self._trained += [(begin + span.start, begin + span.end) for span in rendered.spans]

    def write(self, path: Path) -> None:
        """Write the Arrow file; no file if there are no rows."""
        if not self._ids:
            return
        np, pa = require("numpy", what="preparing data"), require("pyarrow", what="preparing data")
        trained = np.zeros(len(self._tokens), np.bool_)
        for start, end in self._trained:
            trained[start:end] = True
        ends = pa.array(np.frombuffer(self._ends, np.int32))
        columns = {
            "id": pa.array(self._ids, pa.string()),
            "source": pa.array(self._sources, pa.string()),
            "input_ids": pa.ListArray.from_arrays(ends, pa.array(np.frombuffer(self._tokens, np.int32))),
            "trained": pa.ListArray.from_arrays(ends, pa.array(trained)),
        }
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)


@define
class TokenReport:
    """Counts of what became of the examples.

    Attributes:
        rows: token rows written for training.
        holdout_rows: token rows held out.
        tokens: tokens of the training rows.
        trained: how many of them are trained on.
        longest: the longest training row, in tokens.
        too_long: examples dropped for `max_length`.
        untrained: renderings without trained tokens; they are left out.
        undrawn: examples left out by the weight of their source.
        texts: training rows without turns.
        split: conversations of which each answer became a row, since their template shows earlier answers otherwise
            than it serves them.
        anomalies: number of examples by what is wrong with their labels.
        shown: the first example with each anomaly, as `file:line`.
        spans: trained tokens by the role of their message ("text" without turns) and the kind of span.
    """

    rows: int = 0
    holdout_rows: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    too_long: int = 0
    untrained: int = 0
    undrawn: int = 0
    texts: int = 0
    split: int = 0
    anomalies: Counter[str] = field(factory=Counter)
    shown: dict[str, str] = field(factory=dict)
    spans: dict[str, Counter[str]] = field(factory=dict)

    def add(self, other: TokenReport) -> None:
        """Add the counts of more examples."""
        for name in ("rows", "holdout_rows", "tokens", "trained", "too_long", "untrained", "undrawn", "texts", "split"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.anomalies.update(other.anomalies)
        self.shown = other.shown | self.shown
        for role, kinds in other.spans.items():
            self.spans.setdefault(role, Counter()).update(kinds)

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "rows": self.rows,
            "holdout_rows": self.holdout_rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "trained_by_role": {role: dict(kinds) for role, kinds in self.spans.items()},
            "longest": self.longest,
            "too_long": self.too_long,
            "untrained": self.untrained,
            "undrawn": self.undrawn,
            "texts": self.texts,
            "split": self.split,
            "anomalies": dict(self.anomalies),
            "shown": self.shown,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> TokenReport:
        """The inverse of `to_plain`."""
        given = {key: value for key, value in values.items() if key not in ("trained_tokens", "trained_by_role")}
        return cls(
            **{**given, "anomalies": Counter(values["anomalies"])},
            trained=values["trained_tokens"],
            spans={role: Counter(kinds) for role, kinds in values["trained_by_role"].items()},
        )


@frozen(kw_only=True)
class TokenSettings:
    """How examples become rows.

    Attributes:
        max_length: longer renderings are dropped and counted, because truncation would cut off the answer.
        turns: which assistant turns are trained.
        seed: of the sample by fractional weights.
        empty_thinking: as `Renderer`.
    """

    max_length: int
    turns: Turns
    seed: int
    empty_thinking: bool = False


@frozen
class ExamplesFile:
    """A shard of examples, as interchange JSONL.

    Attributes:
        path: the examples that are kept.
        weight: how often each example is repeated; a fraction samples.
        entry: the cache entry with all examples of the shard (see `reading`), if there is one.
        held: the numbers of those that are held out from training.
    """

    path: Path
    weight: float
    entry: Path | None = None
    held: tuple[int, ...] = ()


def repeats(example_id: str, weight: float, seed: int) -> int:
    """How often an example of a source with this weight is trained on in an epoch; a fraction samples."""
    return int(weight) + (share(f"{seed}:weight:{example_id}") < weight % 1)


@frozen
class RenderExamples:
    """Turns a file of examples into a cache entry with the files named above.

    The facts: `report`, a `TokenReport`; `rejected`, `reasons` and `first` of `Rejected`.

    Attributes:
        tokenizer: the folder of the renderer.
        fingerprint: that of the renderer.
        settings: how examples become rows.
        cache: stores the entries.
    """

    tokenizer: Path
    fingerprint: str
    settings: TokenSettings
    cache: Cache

    @contextlib.contextmanager
    def opened(self, plugins: Plugins | None) -> Iterator[Callable[[ExamplesFile, Tick], Path]]:  # noqa: ARG002 - see `Job`
        """See `Job`."""
        settings = self.settings
        renderer = Renderer.from_folder(self.tokenizer, empty_thinking=settings.empty_thinking)
        recipe = [
            TOKENS_VERSION,
            self.fingerprint,
            settings.max_length,
            settings.turns,
            settings.seed,
            settings.empty_thinking,
        ]

        def render(given: ExamplesFile, tick: Tick) -> Path:
            key = digest_json([*recipe, given.weight, given.held, files.sha256_file(given.path)])

            def write(folder: Path) -> None:
                shard = ShardRenderer(renderer, settings.turns, self.cache, given.entry)
                _Rendering(shard, settings, folder).write(given, tick)

            return self.cache.make(TOKENS, key, write)

        yield render


class _Rendering:
    """The rendering of one shard."""

    def __init__(self, renderer: ShardRenderer, settings: TokenSettings, folder: Path) -> None:
        self.renderer = renderer
        self.settings = settings
        self.folder = folder
        self.report = TokenReport()
        self.rejected = Rejected(folder / REJECTED)
        self.train, self.holdout = TokenWriter(), TokenWriter()
        self._refused: set[str] = set()

    def write(self, given: ExamplesFile, tick: Tick) -> None:
        """Render every example of a file, and write the results."""
        held = frozenset(given.held)
        with given.path.open("rb") as file:
            for number, line in enumerate(file):
                if number % EXAMPLES_BETWEEN == 0:
                    tick()
                self._add(line, given.weight, held_out=number in held)
        self.train.write(self.folder / TRAIN)
        self.holdout.write(self.folder / HOLDOUT)
        facts = {"rejected": self.rejected.count, "reasons": self.rejected.reasons, "first": self.rejected.first}
        files.write_json(self.folder / FACTS, {"report": self.report.to_plain(), **facts})

    def _add(self, line: bytes, weight: float, *, held_out: bool) -> None:
        row = orjson.loads(line)
        example_id, example = row["id"], Example.from_row(row)
        times = repeats(example_id, weight, self.settings.seed)
        if not times:
            self.report.undrawn += 1
            return
        try:
            turns = self.renderer.train(line, example)
        except RowError as error:
            self._reject(example, str(error))
            return
        source = example.source.rpartition(":")[0]
        self.report.split += self.settings.turns == "auto" and len(turns) > 1
        for rendered in turns:
            if not self._admitted(example_id, example, rendered):
                continue
            if held_out:
                self.report.holdout_rows += 1
                self.holdout.add(example_id, rendered, source)
            else:
                for _ in range(times):
                    self._count(example, rendered)
                    self.train.add(example_id, rendered, source)

    def _reject(self, example: Example, reason: str) -> None:
        if example.source in self._refused:  # the rejected fraction counts rows, and a row may give several examples
            return
        self._refused.add(example.source)
        file, _, line = example.source.rpartition(":")
        self.rejected.add(Row(file=file, line=int(line), value=example.to_row()), reason)

    def _admitted(self, example_id: str, example: Example, rendered: Rendered) -> bool:
        report, most = self.report, self.settings.max_length
        for name in rendered.anomalies:
            report.anomalies[name] += 1
            report.shown.setdefault(name, example.source)
        if len(rendered.ids) > most:
            report.too_long += 1
            reason = f"{len(rendered.ids):,} tokens; [data.tokens] max_length is {most:,}"
            line = {"id": example_id, "source": example.source, "reason": reason}
            with (self.folder / DROPPED).open("ab") as file:
                file.write(files.json_line(line).encode("utf-8"))
            return False
        # The first token of a row has no context from which to predict it, so it is never trained.
        teaches = any(span.end > 1 for span in rendered.spans)
        report.untrained += not teaches
        return teaches

    def _count(self, example: Example, rendered: Rendered) -> None:
        report = self.report
        report.rows += 1
        report.tokens += len(rendered.ids)
        report.longest = max(report.longest, len(rendered.ids))
        report.texts += example.text is not None
        for span in rendered.spans:
            role = "text" if example.text is not None else example.messages[span.message].role
            report.trained += span.end - span.start
            if role not in report.spans:
                report.spans[role] = Counter()
            report.spans[role][span.kind] += span.end - span.start
