"""Raw rows of a source: its files, found by path, glob, folder or on the hub, and the built-in data."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import define, fields

from modelwright.core.api.errors import UsageError
from modelwright.core.api.files import sha256_file
from modelwright.core.api.records import digest_json
from modelwright.core.config.data import RowsConfig, SourceConfig
from modelwright.core.config.paths import HUB
from modelwright.core.models.hub import fetch_data
from modelwright.core.stages.prepare.builtin import BUILTIN_VERSION, builtin_rows, parse_builtin
from modelwright.core.stages.prepare.dataset_sources import dataset_source
from modelwright.core.stages.prepare.readers import (
    READABLE,
    RawRow,
    Row,
    is_readable,
    read_file,
    row_file,
    saved_dataset,
    shown_path,
)

__all__ = [
    "RawRow",
    "Row",
    "check_source",
    "on_hub",
    "raw_rows",
    "read_source",
    "share",
    "source_digests",
    "source_files",
    "source_lineage",
    "without_place",
]

Notice = Callable[[str], None]


def check_source(source: SourceConfig) -> None:
    """Check that there are rows to read, as far as that is known without reading them.

    Raises:
        As `source_files` and `DatasetSource.check`.
    """
    if source.dataset is not None:
        dataset_source(source).check()
    else:
        source_files(source)


def on_hub(source: SourceConfig) -> bool:
    """Whether the rows come from the hub, so that a network may be needed."""
    if source.dataset is not None:
        return not Path(source.dataset).is_absolute()
    return source.place.startswith(HUB)


def source_files(source: SourceConfig) -> list[Path]:
    """The files of a source, sorted; a file that is found twice through links is listed once.

    For a folder: the readable files in it whose names do not begin with a dot, without subfolders. For a data set that
    `datasets` saved to disk: its files, in its order. For the hub: the files that the path names. For built-in data and
    for a `dataset` of the hub: none.

    Raises:
        UsageError: no file was found, or one cannot be read: unknown type, not a regular file, or no permission.
        ModelwrightError: the hub cannot be reached.
    """
    if source.dataset is not None:
        return dataset_source(source).files()
    if parse_builtin(source.place):
        return []
    pattern = fetch_data(source.place) if on_hub(source) else source.place
    path = Path(pattern)
    try:
        found = _found(pattern, path)
    except OSError as error:
        raise UsageError(f"{shown_path(path)}: cannot be read: {error.strerror}") from error
    real = {os.path.realpath(file): file for file in reversed(found)}
    chosen = [file for file in found if real[os.path.realpath(file)] is file]
    for file in chosen:
        _check_file(file)
    return chosen


def _found(pattern: str, path: Path) -> list[Path]:
    if path.is_dir():
        if (saved := saved_dataset(path)) is not None:
            return saved
        found = [file for file in sorted(path.iterdir()) if is_readable(file) and not file.name.startswith(".")]
        if not found:
            inner = (
                f"; to read its subfolders: {path / '**' / '*.jsonl'}" if any(map(Path.is_dir, path.iterdir())) else ""
            )
            raise UsageError(
                f"{shown_path(path)}: no file in this folder has a supported type (supported: {READABLE}){inner}"
            )
        return found
    if os.path.lexists(path):
        return [path]
    matching = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - the pattern may be absolute
    # "**" finds folders too, beside the files in them.
    parents = {parent for file in matching for parent in file.parents}
    found = [file for file in matching if file not in parents]
    if not found:
        problem = "no file matches this pattern" if glob.has_magic(pattern) else "there is no such file"
        raise UsageError(f"{shown_path(path)}: {problem}")
    return found


def _check_file(file: Path) -> None:
    """Refuse a file that cannot be read, without opening special files."""

    def refused(reason: str) -> UsageError:
        return UsageError(f"{shown_path(file)}: {reason}")

    try:
        str(file).encode("utf-8")
    except UnicodeEncodeError:
        raise refused("the file name is not UTF-8: rename the file") from None
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise refused("this is a folder, not a file: give it its own [[data.sources]]")
        if not stat.S_ISREG(mode):
            raise refused("not a regular file: a source is read more than once, so save the data to a file first")
        if not is_readable(file):
            raise refused(f"unsupported file type (supported: {READABLE})")
        with file.open("rb"):
            pass
    except FileNotFoundError:
        raise refused("broken symlink") from None
    except OSError as error:
        raise refused(f"cannot be read: {error.strerror}") from error


def source_digests(source: SourceConfig, seed: int) -> list[tuple[str, str]]:
    """What the rows of a source depend on: name and sha256 of each file; for built-in data, version and seed.

    For a `dataset`, config and split, too; if it is the hub's, its commit instead of files.
    """
    return [(name, digest) for name, _, digest in _inputs(source, seed)]


def source_lineage(source: SourceConfig, seed: int) -> dict[str, str]:
    """The digests of `source_digests` by place: a file's path; a data set's name with commit, config and split."""
    return {place: digest for _, place, digest in _inputs(source, seed)}


def _inputs(source: SourceConfig, seed: int) -> list[tuple[str, str, str]]:
    """Name, place and digest of each thing."""
    if source.dataset is not None:
        return dataset_source(source).inputs()
    if parse_builtin(source.place):
        return [(source.place, source.place, digest_json(["generator", source.place, BUILTIN_VERSION, seed]))]
    return [(file.name, str(file), sha256_file(file)) for file in source_files(source)]


def without_place(table: Mapping[str, Any]) -> dict[str, Any]:
    """A source's or test set's table without the keys that say where the rows are; `source_digests` covers these."""
    places = {one.name for one in fields(RowsConfig)}
    return {key: value for key, value in table.items() if key not in places} | {"path": None}


def read_source(source: SourceConfig, seed: int) -> Iterator[Row]:
    """The rows of a source, parsed; see `raw_rows`."""
    return (row.read() for row in raw_rows(source, seed))


def raw_rows(source: SourceConfig, seed: int, *, notice: Notice | None = None) -> Iterator[RawRow]:
    """The rows of a source, in order: first `fraction` samples them by `seed`, then `limit` cuts the list.

    Files of one source may have different columns; the format decides for each row whether it can read it.

    Args:
        source: where the rows are.
        seed: of the fraction.
        notice: called once for each file whose columns differ from those of the file before it.

    Raises:
        UsageError: there is no such file.
        ModelwrightError: a file has no rows, or its content does not match its name.
    """
    rows = _drawn(_all_rows(source, seed, notice), source.fraction, seed)
    return itertools.islice(rows, source.limit)


def _all_rows(source: SourceConfig, seed: int, notice: Notice | None) -> Iterator[RawRow]:
    if source.dataset is not None:
        yield from dataset_source(source).rows()
        return
    builtin = parse_builtin(source.place)
    if builtin:
        for number, value in enumerate(builtin_rows(*builtin, seed=seed), 1):
            yield Row(file=source.place, line=number, value=value)
        return
    schemas = _Schemas(notice)
    for file in source_files(source):
        yield from read_file(file, lambda columns, file=file: schemas.see(file, columns))  # type: ignore[misc]


@define
class _Schemas:
    """Compares the columns of a source's files, one after the other."""

    notice: Notice | None
    file: str = ""
    columns: Mapping[str, str] | None = None

    def see(self, file: Path, columns: Mapping[str, str]) -> None:
        """Report how the columns changed since the previous file."""
        changes = [] if self.columns is None else list(_changes(self.columns, columns))
        if changes and self.notice:
            self.notice(f"{row_file(file)}: the columns differ from those of {self.file}: {'; '.join(changes)}")
        self.file, self.columns = row_file(file), columns


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """What differs, in words."""
    gone, new = [name for name in before if name not in after], [name for name in after if name not in before]
    if gone:
        yield f"missing {', '.join(gone)}"
    if new:
        yield f"new {', '.join(new)}"
    for name in after:
        then, now = before.get(name), after[name]
        if then and now and then != now:
            yield f"{name} changed from {then} to {now}"


def _drawn(rows: Iterator[RawRow], fraction: float, seed: int) -> Iterator[RawRow]:
    if fraction == 1.0:
        return rows
    return (row for row in rows if share(f"{seed}:fraction:{row.file}:{row.line}") < fraction)


def share(text: str) -> float:
    """A number in [0, 1), uniform over texts, that depends on `text` only: the same on every machine, in any order."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
