"""The second half of preparing, shard by shard: examples to token rows, and the proof of what is trained."""

from __future__ import annotations

import array
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import orjson
from attrs import define, field, frozen

from modelwright.core.api import files
from modelwright.core.api.errors import RowError
from modelwright.core.api.records import Example, digest_json
from modelwright.core.chat.renderer import Rendered, Renderer
from modelwright.core.extras import require
from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare.cache import Store
from modelwright.core.stages.prepare.examples import Rejected
from modelwright.core.stages.prepare.pool import Tick
from modelwright.core.stages.prepare.renderings import ShardRenderer
from modelwright.core.stages.prepare.sources import Row, share

# Counts up when the same examples give other token files than before.
VERSION = 2
KIND = "tokens"
TRAIN, HOLDOUT = "train.arrow", "holdout.arrow"
REJECTED, DROPPED, FACTS = "rejected.jsonl", "dropped.jsonl", "facts.json"
EXAMPLES_BETWEEN = 200


class TokenWriter:
    """Gathers token rows, and writes them as a shard that `modelwright.TokenFolder` reads."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._tokens = array.array("i")
        self._ends = array.array("i", [0])
        self._trained: list[tuple[int, int]] = []

    def add(self, example_id: str, rendered: Rendered, source: str) -> None:
        """Add one row; `source` names the file that its example came from."""
        begin = len(self._tokens)
        self._ids.append(example_id)
        self._sources.append(source)
        self._tokens.extend(rendered.ids)
        self._ends.append(len(self._tokens))
        self._trained += [(begin + span.start, begin + span.end) for span in rendered.spans]

    def write(self, path: Path) -> None:
        """Write an Arrow file as `modelwright.TokenFolder` reads it; none where there are no rows."""
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
    """What became of the examples.

    Attributes:
        rows: token rows written for training.
        holdout_rows: token rows held out.
        tokens: of the training rows.
        trained: how many of those are learnt.
        longest: the longest training row, in tokens.
        too_long: examples dropped for `max_length`.
        untrained: renderings of which nothing is learnt; they are left out.
        undrawn: examples that the weight of their source left out.
        texts: training rows without turns.
        anomalies: what is wrong with the labels, by name, with the number of examples.
        shown: for each anomaly, the first example that has it, as `file:line`.
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
    anomalies: Counter[str] = field(factory=Counter)
    shown: dict[str, str] = field(factory=dict)
    spans: dict[str, Counter[str]] = field(factory=dict)

    def add(self, other: TokenReport) -> None:
        """Take over what became of further examples."""
        for name in ("rows", "holdout_rows", "tokens", "trained", "too_long", "untrained", "undrawn", "texts"):
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
        max_length: longer renderings are dropped and counted: to cut one would cut its answer.
        turns: which assistant turns are trained.
        holdout: the share of examples that are kept from training.
        seed: draws them, and what a source's weight leaves over.
    """

    max_length: int
    turns: Literal["all", "last", "split"]
    holdout: float
    seed: int


@frozen
class ExamplesFile:
    """A shard of examples, as interchange JSONL.

    Attributes:
        path: those that stay.
        weight: each is trained on so many times.
        entry: all that there were, in the store (see `reading`), if they are there.
    """

    path: Path
    weight: float
    entry: Path | None = None


@frozen
class RenderExamples:
    """Makes of a file of examples an entry of the store with the files named above.

    The facts: `report`, a `TokenReport`; `rejected`, `reasons` and `first` of `Rejected`.

    Attributes:
        tokenizer: the folder of the one renderer.
        fingerprint: the renderer's.
        settings: how.
        store: keeps the entries.
    """

    tokenizer: Path
    fingerprint: str
    settings: TokenSettings
    store: Store

    @contextlib.contextmanager
    def opened(self, plugins: Plugins | None) -> Iterator[Callable[[ExamplesFile, Tick], Path]]:  # noqa: ARG002 - see `Job`
        """See `Job`."""
        renderer = Renderer.from_folder(self.tokenizer)
        settings = self.settings
        recipe = [VERSION, self.fingerprint, settings.max_length, settings.turns, settings.holdout, settings.seed]

        def render(given: ExamplesFile, tick: Tick) -> Path:
            key = digest_json([*recipe, given.weight, files.sha256_file(given.path)])

            def write(folder: Path) -> None:
                shard = ShardRenderer(renderer, settings.turns, self.store, given.entry)
                _Rendering(shard, settings, folder).write(given, tick)

            return self.store.make(KIND, key, write)

        yield render


class _Rendering:
    """One shard on its way."""

    def __init__(self, renderer: ShardRenderer, settings: TokenSettings, folder: Path) -> None:
        self.renderer = renderer
        self.settings = settings
        self.folder = folder
        self.report = TokenReport()
        self.rejected = Rejected(folder / REJECTED)
        self.train, self.holdout = TokenWriter(), TokenWriter()
        self._refused: set[str] = set()

    def write(self, given: ExamplesFile, tick: Tick) -> None:
        """Render every example of a file, and write what comes of it."""
        with given.path.open("rb") as file:
            for number, line in enumerate(file):
                if number % EXAMPLES_BETWEEN == 0:
                    tick()
                self._add(line, given.weight)
        self.train.write(self.folder / TRAIN)
        self.holdout.write(self.folder / HOLDOUT)
        facts = {"rejected": self.rejected.count, "reasons": self.rejected.reasons, "first": self.rejected.first}
        files.write_json(self.folder / FACTS, {"report": self.report.to_plain(), **facts})

    def _add(self, line: bytes, weight: float) -> None:
        row = orjson.loads(line)
        example_id, example, seed = row["id"], Example.from_row(row), self.settings.seed
        times = int(weight)
        if times != weight:
            times += share(f"{seed}:weight:{example_id}") < weight % 1
        if not times:
            self.report.undrawn += 1
            return
        try:
            turns = self.renderer.train(line, example)
        except RowError as error:
            self._reject(example, str(error))
            return
        source = example.source.rpartition(":")[0]
        held_out = bool(self.settings.holdout) and share(f"{seed}:holdout:{example_id}") < self.settings.holdout
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
        if example.source in self._refused:  # the share of rejected rows counts rows; one may give several examples
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
            reason = f"{len(rendered.ids):,} tokens, and [data.tokens] max_length is {most:,}"
            line = {"id": example_id, "source": example.source, "reason": reason}
            with (self.folder / DROPPED).open("ab") as file:
                file.write(files.json_line(line).encode("utf-8"))
            return False
        # Nothing comes before a row's first token, so nothing can be taught to write it.
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
