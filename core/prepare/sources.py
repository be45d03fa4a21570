"""Raw rows from where they lie: JSONL and JSON files, plain or gzipped, globs, folders, and the built-in source."""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.files import sha256_file
from modelwright.core.api.records import digest_json
from modelwright.core.config.schema import SourceConfig
from modelwright.core.prepare.builtin import BUILTIN_VERSION, builtin_rows, parse_builtin

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@frozen(kw_only=True)
class Row:
    """One raw row, or what is wrong with it.

    Attributes:
        file: the file's name, or the built-in source's.
        line: from 1; of a .json array, the element's number.
        value: the row; None where it cannot be read.
        reason: why it cannot.
        text: what stood there, for `rejected.jsonl`; at most 2,000 characters of an unreadable line.
    """

    file: str
    line: int
    value: Mapping[str, Any] | None
    reason: str = ""
    text: str = ""


def source_files(source: SourceConfig) -> list[Path]:
    """The files of a source that is not built in, sorted.

    Raises:
        UsageError: there is none, or one of a kind that cannot be read.
    """
    path = Path(source.path)
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
        if not found:
            raise UsageError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
        return found
    matching = sorted(glob.glob(source.path, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = [path] if path.exists() else [Path(name) for name in matching]
    if not found:
        kind = "matches this pattern" if glob.has_magic(source.path) else "is there: give a .jsonl or .json file"
        raise UsageError(f"{path}: no file {kind}")
    for file in found:
        if not file.name.endswith(SUFFIXES):
            raise UsageError(f"{file}: cannot read this kind of file (can: {', '.join(SUFFIXES)})")
    return found


def source_digests(source: SourceConfig, seed: int) -> list[tuple[str, str]]:
    """What a source's rows depend on: each file's name and sha256 in order; of a built-in one, generator and seed."""
    builtin = parse_builtin(source.path)
    if builtin:
        return [(source.path, digest_json(["generator", source.path, BUILTIN_VERSION, seed]))]
    return [(file.name, sha256_file(file)) for file in source_files(source)]


def read_source(source: SourceConfig, seed: int) -> Iterator[Row]:
    """The rows of a source, in order; `fraction` is drawn by `seed`, then `limit` cuts.

    Raises:
        UsageError: there is no such file.
        ModelwrightError: a file has no row at all.
    """
    rows = _drawn(_all_rows(source, seed), source.fraction, seed)
    return itertools.islice(rows, source.limit)


def _all_rows(source: SourceConfig, seed: int) -> Iterator[Row]:
    builtin = parse_builtin(source.path)
    if builtin:
        for number, value in enumerate(builtin_rows(*builtin, seed=seed), 1):
            yield Row(file=source.path, line=number, value=value)
        return
    for file in source_files(source):
        count = 0
        for row in _file_rows(file):
            count += 1
            yield row
        if not count:
            raise ModelwrightError(f"{file}: the file has no rows: expected one JSON object a line")


def _drawn(rows: Iterator[Row], fraction: float, seed: int) -> Iterator[Row]:
    if fraction == 1.0:
        return rows
    return (row for row in rows if share(f"{seed}:fraction:{row.file}:{row.line}") < fraction)


def share(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone, evenly spread: the same on every machine, in every order."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def _opened(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _file_rows(file: Path) -> Iterator[Row]:
    try:
        with _opened(file) as opened:
            if file.name.removesuffix(".gz").endswith(".jsonl"):
                yield from _jsonl_rows(file, opened)
            else:
                yield from _json_rows(file, opened)
    except (EOFError, zlib.error, OSError) as error:
        raise ModelwrightError(f"{file}: cannot be read: {error}") from error


def _jsonl_rows(file: Path, opened: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(opened, 1):
        text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n")
        if text.strip():
            yield _row(file, number, text)


def _row(file: Path, line: int, text: bytes) -> Row:
    def unreadable(reason: str) -> Row:
        shown = text[:2000].decode("utf-8", "replace")
        return Row(file=file.name, line=line, value=None, reason=reason, text=shown)

    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return unreadable(f"not UTF-8: byte 0x{text[error.start]:02x} at column {error.start + 1}")
    except json.JSONDecodeError as error:
        return unreadable(f"not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:  # a number of thousands of digits
        return unreadable(f"not JSON that can be read: {error}")
    except RecursionError:
        return unreadable("not JSON: too deeply nested")
    if not isinstance(value, dict):
        return unreadable(f"not a JSON object but {type(value).__name__}")
    return Row(file=file.name, line=line, value=value)


def _json_rows(file: Path, opened: IO[bytes]) -> Iterator[Row]:
    try:
        values = json.loads(opened.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ModelwrightError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(values, list):
        raise ModelwrightError(f"{file}: expected a JSON array of objects, found {type(values).__name__}")
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield Row(file=file.name, line=number, value=value)
        else:
            shown = json.dumps(value)[:2000]
            yield Row(
                file=file.name, line=number, value=None, reason=f"not an object but {type(value).__name__}", text=shown
            )
