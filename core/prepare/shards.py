"""Rows in shards: parts of bounded size that are prepared one by one, whoever does it, and kept when they are done."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from attrs import define

from modelwright.core.config.schema import SourceConfig
from modelwright.core.prepare.sources import RawRow, raw_rows

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


def shards(sources: Sequence[SourceConfig], seed: int, notice: Callable[[str], None]) -> Iterator[Shard]:
    """All rows of the sources in order. Where a shard ends depends on the rows alone.

    Raises:
        As `raw_rows`.
    """
    for number, source in enumerate(sources):
        rows: list[RawRow] = []
        size = 0
        for row in raw_rows(source, seed, notice=notice):
            if rows and (size >= SHARD_BYTES or len(rows) == SHARD_ROWS or row.file != rows[0].file):
                yield _packed(number, rows)
                rows, size = [], 0
            rows.append(row)
            size += row.size
        if rows:
            yield _packed(number, rows)


def _packed(source: int, rows: list[RawRow]) -> Shard:
    return Shard(source, rows[0].file, pickle.dumps(rows, protocol=5))
