"""Rows in shards: parts of bounded size that are prepared one by one, whoever does it, and kept when they are done."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from attrs import define, frozen

from modelwright.core.config.schema import SourceConfig
from modelwright.core.stages.prepare.sources import RawRow, raw_rows

# A few seconds' work. Smaller shards would make more files, larger ones more to do again after a kill.
SHARD_BYTES = 4 * 2**20
SHARD_ROWS = 2**14


@define(slots=False, frozen=True)
class Shard:
    """Some rows of one file.

    Attributes:
        source: the number of their source.
        file: as `Row.file`.
        packed: the rows, pickled: they go to another process, and are what a result is known by.
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
class Part:
    """Every `of`-th shard from the `number`-th on, both from 1: what one of so many jobs does of the data."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, shard: int) -> bool:
        """Whether a shard, numbered from 0, is in it."""
        return shard % self.of == self.number - 1


def shards(sources: Sequence[SourceConfig], seed: int, notice: Callable[[str], None]) -> Iterator[Shard]:
    """All rows of the sources in order. Where a shard ends depends on the rows alone.

    Raises:
        As `raw_rows`.
    """
    return (_packed(source, rows) for source, rows in _groups(sources, seed, notice))


def shards_of(part: Part, sources: Sequence[SourceConfig], seed: int, passed: Callable[[], None]) -> Iterator[Shard]:
    """The shards of a part, in order; the rows of the others are found but not read.

    Args:
        part: which ones.
        sources: all of them.
        seed: as for `shards`.
        passed: called for each shard when it is found, of this part or not.

    Raises:
        As `raw_rows`.
    """
    for number, (source, rows) in enumerate(_groups(sources, seed, lambda _: None)):
        passed()
        if part.has(number):
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
