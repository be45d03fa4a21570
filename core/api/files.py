"""Writing that survives a kill, and digests: every artefact is written under a temporary name, synced, then renamed.

A kill at any moment leaves the old state or the new one. Temporary names begin with `.tmp-`, so that whoever meets one
knows that nothing in it was finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from modelwright.core.api.records import digest_json

TEMPORARY = ".tmp-"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when the block ends well, and is gone when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `path` when the block ends well; every file in it is synced first.

    An older `path` is moved aside and removed; between the two renames a kill can leave neither name in place, so a
    caller whose reader cannot bear that uses a new name each time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file() and not file.is_symlink():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            elif file.is_dir():
                sync_folder(file)
        sync_folder(temporary)
        if path.exists():
            aside = path.parent / f"{TEMPORARY}old-{path.name}-{uuid.uuid4().hex[:8]}"
            path.rename(aside)
            temporary.rename(path)
            shutil.rmtree(aside)
        else:
            temporary.rename(path)
        sync_folder(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed writer left in `folder`; only the holder of the folder's lock may call this."""
    for left in folder.glob(f"{TEMPORARY}*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file, or leave the old one."""
    with writing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON for people, or leave the old file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def json_line(value: Any) -> str:
    """`value` as one line of a JSONL file, its newline included."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def json_lines(file: IO[str]) -> Iterator[Any]:
    """The values of a JSONL file that this program wrote."""
    return (json.loads(line) for line in file)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below `folder` by its relative path: `{path: {"sha256": …, "size": bytes}}`, sorted."""
    return {
        file.relative_to(folder).as_posix(): {"sha256": sha256_file(file), "size": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def sizes(folder: Path) -> dict[str, int]:
    """The size of every file below `folder` in bytes, by its relative path."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()
    }


def missing_file(folder: Path, expected: Mapping[str, int]) -> Path | None:
    """The first file of `expected` (as `sizes` gives it) that is not in `folder`, or has another size."""
    for path, size in expected.items():
        file = folder / path
        if not file.is_file() or file.stat().st_size != size:
            return file
    return None


def manifest_digest(manifest: Mapping[str, Mapping[str, Any]]) -> str:
    """One digest for a folder: the sha256 over the canonical JSON of `{path: sha256}`."""
    return digest_json({path: entry["sha256"] for path, entry in manifest.items()})
