"""The first half of preparing: cut the rows into shards of bounded size, and turn each shard into examples.

Each shard is read by itself, in any process, and its examples are cached together with the verdicts of the checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import define, frozen

from modelwright.core.api import files
from modelwright.core.api.components import Format, FormatSpec
from modelwright.core.api.errors import ModelwrightError, RowError
from modelwright.core.api.records import Example, digest_json
from modelwright.core.config import from_plain
from modelwright.core.config.data import SourceConfig
from modelwright.core.plugins import Plugins
from modelwright.core.runs.worker import admitted
from modelwright.core.stages.prepare.cache import Cache
from modelwright.core.stages.prepare.checks import Check, first_removal
from modelwright.core.stages.prepare.examples import Rejected, read_lines
from modelwright.core.stages.prepare.pool import Tick
from modelwright.core.stages.prepare.quality import check_inputs, example_checks
from modelwright.core.stages.prepare.sources import RawRow, Row, raw_rows

KIND = "examples"
EXAMPLES, REJECTED, FACTS = "examples.jsonl", "rejected.jsonl", "facts.json"
# Rows between two checks for a request to stop.
ROWS_BETWEEN = 200
# A few seconds of work. Smaller shards make more files; larger ones lose more work when a job is killed.
SHARD_BYTES = 4 * 2**20
SHARD_ROWS = 2**14


@define(slots=False, frozen=True)
class Shard:
    """Some rows of one file.

    Attributes:
        source: the number of the source.
        file: as `Row.file`.
        packed: the rows, pickled: to send to another process, and to identify the result.
    """

    source: int
    file: str
    packed: bytes

    def rows(self) -> list[RawRow]:
        """The rows."""
        unpacked: list[RawRow] = pickle.loads(self.packed)  # noqa: S301 - packed below
        return unpacked

    @cached_property
    def digest(self) -> str:
        """The sha256 of file name and rows."""
        return hashlib.sha256(self.file.encode() + b"\0" + self.packed).hexdigest()


@frozen
class ShardSelection:
    """Every `of`-th shard, beginning with the `number`-th (from 1): the share of one job."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, shard: int) -> bool:
        """Whether a shard, numbered from 0, is selected."""
        return shard % self.of == self.number - 1


def shards(sources: Sequence[SourceConfig], seed: int, notice: Callable[[str], None]) -> Iterator[Shard]:
    """All rows of the sources, in order. Where a shard ends depends on the rows only.

    Raises:
        As `raw_rows`.
    """
    return (_packed(source, rows) for source, rows in _groups(sources, seed, notice))


def shards_of(
    selection: ShardSelection, sources: Sequence[SourceConfig], seed: int, passed: Callable[[], None]
) -> Iterator[Shard]:
    """The selected shards, in order; rows of other shards are located but not parsed.

    Args:
        selection: which shards.
        sources: all of them.
        seed: as for `shards`.
        passed: called for each shard, selected or not.

    Raises:
        As `raw_rows`.
    """
    for number, (source, rows) in enumerate(_groups(sources, seed, lambda _: None)):
        passed()
        if selection.has(number):
            yield _packed(source, rows)


def _groups(
    sources: Sequence[SourceConfig], seed: int, notice: Callable[[str], None]
) -> Iterator[tuple[int, list[RawRow]]]:
    for number, source in enumerate(sources):
        rows: list[RawRow] = []
        size = 0
        for row in raw_rows(source, seed, notice=notice):
            if rows and (size >= SHARD_BYTES or len(rows) == SHARD_ROWS or row.file != rows[0].file):
                yield number, rows
                rows, size = [], 0
            rows.append(row)
            size += row.size
        if rows:
            yield number, rows


def _packed(source: int, rows: list[RawRow]) -> Shard:
    return Shard(source, rows[0].file, pickle.dumps(rows, protocol=5))


@frozen
class ReadShards:
    """Turns a shard into a cache entry with the files named above.

    The facts: `rows`, the number of rows; `ids` and `lines` of the examples; `verdicts`, why examples are removed, by
    their number; `rejected`, `reasons` and `first` of `Rejected`; `detected`, what rows were read as, with counts.

    Attributes:
        config: the run's, as JSON values.
        recipe: a digest of everything that the examples depend on, except the rows.
        checks: a digest of what the verdicts depend on.
        cache: stores the entries.
        only_cached: do not make missing entries; return None for them.
    """

    config: Mapping[str, Any]
    recipe: str
    checks: str
    cache: Cache
    only_cached: bool = False

    @contextlib.contextmanager
    def opened(self, plugins: Plugins | None) -> Iterator[Callable[[Shard, Tick], Path | None]]:
        """See `Job`.

        Raises:
            ModelwrightError: a test set changed before it was read here, or a check failed.
        """
        plugins = plugins or admitted(self.config)
        config = from_plain(self.config, plugins)
        data = config.data
        reader: Format = plugins.get(FormatSpec, data.format).create(data.options)
        with example_checks(config, plugins) as checks:
            if digest_json(check_inputs(config, plugins)) != self.checks:
                raise ModelwrightError(
                    "a test set changed while the data was being prepared: run the same command again"
                )
            reading = _Reading(reader, data.format, checks)

            def read(shard: Shard, tick: Tick) -> Path | None:
                key = digest_json([self.recipe, self.checks, shard.digest])
                if self.only_cached:
                    return self.cache.get(KIND, key)
                return self.cache.make(KIND, key, lambda folder: reading.write(shard, folder, tick))

            yield read


@frozen
class _Reading:
    reader: Format
    format_name: str
    checks: Sequence[Check]

    def write(self, shard: Shard, folder: Path, tick: Tick) -> None:
        rejected = Rejected(folder / REJECTED)
        detected = _Detected(self.reader, self.format_name)
        rows = shard.rows()
        ids: list[str] = []
        lines: list[int] = []
        verdicts: dict[int, Any] = {}
        with (folder / EXAMPLES).open("wb") as file:
            read = read_lines(
                _ticking(rows, tick),
                self.reader,
                format_name=self.format_name,
                reject=rejected.add,
                on_row=detected.count,
            )
            for number, (example, line) in enumerate(read):
                verdict = first_removal(self.checks, example)
                if verdict is not None:
                    verdicts[number] = [verdict[0], verdict[1].reason, verdict[1].facts]
                ids.append(example.id)
                lines.append(_line_number(example))
                file.write(line)
        facts = {"rows": len(rows), "ids": ids, "lines": lines, "verdicts": verdicts}
        facts |= {"rejected": rejected.count, "reasons": rejected.reasons, "first": rejected.first}
        files.write_json(folder / FACTS, facts | {"detected": detected.counts})


def _ticking(rows: Iterable[RawRow], tick: Tick) -> Iterator[RawRow]:
    for number, row in enumerate(rows):
        if number % ROWS_BETWEEN == 0:
            tick()
        yield row


def _line_number(example: Example) -> int:
    return int(example.source.rpartition(":")[2])


def _shape(value: Any) -> Any:
    """What a format may see in a column without reading it: whether it is empty, and the keys of a first message."""
    first = value[0] if isinstance(value, list) and value else None
    return tuple(first) if isinstance(first, dict) else bool(value)


class _Detected:
    """Counts what rows are read as; asks the format once for each set of filled columns."""

    def __init__(self, reader: Format, format_name: str) -> None:
        self.counts: Counter[str] = Counter()
        self._ask = getattr(reader, "detect", None)
        self._otherwise = f"rows read by {format_name}"
        self._known: dict[tuple[Any, ...], str | None] = {}

    def count(self, row: Row) -> None:
        """Count a row; those that the format cannot read are counted as rejected elsewhere."""
        assert row.value is not None
        columns = tuple((name, _shape(value)) for name, value in row.value.items())
        if columns not in self._known:
            self._known[columns] = self._named(row)
        named = self._known[columns]
        if named is not None:
            self.counts[named] += 1

    def _named(self, row: Row) -> str | None:
        if self._ask is None:
            return self._otherwise
        try:
            return str(self._ask(row.value))
        except RowError:
            return None
