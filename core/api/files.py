"""Writing that survives a kill, and digests: every artefact is written under a temporary name, synced, then renamed.

A kill at any moment leaves the old state or the new one. Temporary names begin with `.tmp-`, so that
nothing in such a file or folder is taken for finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.records import digest_json
from modelwright.core.api.wording import one_line

# What plugins use, listed in the reference; the rest is for core.
__all__ = [
    "TEMPORARY",
    "file_record",
    "folder_manifest",
    "manifest_digest",
    "read_json",
    "remove_temporaries",
    "sha256_file",
    "sizes",
    "sync_file",
    "sync_folder",
    "temporary_name",
    "write_json",
    "write_text",
    "writing",
    "writing_folder",
]

TEMPORARY = ".tmp-"
# `json.dumps` makes one at each call.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# Bytes of a name that are kept in its temporary name: file systems allow 255 altogether.
_KEPT_OF_A_NAME = 200
# What the file systems in use take, in bytes.
_LONGEST_NAME = 255
_TOO_LONG = "has a name that is too long"


class DamagedError(ModelwrightError):
    """A file that this program wrote has been damaged since.

    Attributes:
        path: the file.
        why: what is wrong with it, in words.
    """

    def __init__(self, path: Path, why: str, *, remedy: str) -> None:
        super().__init__(f"{path} is damaged ({why}): {remedy}")
        self.path = path
        self.why = why


def temporary_name(path: Path, mark: str = "") -> Path:
    """A temporary name beside `path`, for a file or folder that will replace it, or that it replaced."""
    name = os.fsencode(path.name)[:_KEPT_OF_A_NAME].decode("utf-8", "ignore")
    return path.parent / f"{TEMPORARY}{mark}{name}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Say of a failure of the file system what could not be done: the name in it is often a temporary one, or none.

    Raises:
        ModelwrightError: `what`, and the system's reason.
    """
    try:
        yield
    except OSError as error:
        raise ModelwrightError(f"{what}: {error.strerror or error}") from error


def sync_file(file: Path) -> None:
    """Make a file's content durable."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` if the block succeeds, and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
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
    """Give a new folder that replaces `path` if the block succeeds; every file in it is synced first.

    An older `path` is moved aside and removed; between the two renames a kill can leave neither name in place, so a
    caller whose reader cannot bear that uses a new name each time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file() and not file.is_symlink():
                sync_file(file)
            elif file.is_dir():
                sync_folder(file)
        sync_folder(temporary)
        if path.exists():
            aside = temporary_name(path, "old-")
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
    """Remove unfinished files of a killed writer from `folder`; only the holder of the folder's lock may call this."""
    for left in folder.glob(f"{TEMPORARY}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; if writing fails, the old file stays."""
    with writing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; if writing fails, the old file stays."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def read_state(path: Path, keys: Mapping[str, type | tuple[type, ...]], *, remedy: str) -> dict[str, Any] | None:
    """Read a JSON table that this program wrote with `write_json`; None where there is none.

    Args:
        path: the file.
        keys: what must be in the table, and of which type.
        remedy: what to do about a damaged one, for the message.

    Raises:
        DamagedError: it is something else.
        ModelwrightError: it cannot be read.
    """
    try:
        value = _table(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelwrightError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DamagedError(path, str(error), remedy=remedy) from error
    wrong = next((key for key, kind in keys.items() if key not in value or not isinstance(value[key], kind)), None)
    if wrong is not None:
        raise DamagedError(path, f"wrong type of {wrong!r}" if wrong in value else f"no {wrong!r}", remedy=remedy)
    return value


def _table(content: bytes) -> dict[str, Any]:
    """The JSON object that some bytes are.

    Raises:
        ValueError: they are something else; the message says what.
    """
    if not content.strip(b"\0 \r\n\t"):
        raise ValueError("empty" if not content else "blank")
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the file is wrong, not this program
    return value


def read_rows(path: Path, keys: Iterable[str], *, remedy: str) -> Iterator[dict[str, Any]]:
    """The tables of a JSONL file that this program wrote as a whole.

    Args:
        path: the file.
        keys: what must be in each table.
        remedy: what to do about a damaged one, for the message.

    Raises:
        DamagedError: a line is something else.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = _table(line)
            except ValueError as error:
                raise DamagedError(path, f"line {number} is {error}", remedy=remedy) from error
            for key in keys:
                if key not in row:
                    raise DamagedError(path, f"line {number} has no {key}", remedy=remedy)
            yield row


def json_line(value: Any) -> str:
    """`value` as one line of a JSONL file, its newline included."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE).decode()
    except orjson.JSONEncodeError:  # integers beyond 64 bits, lone surrogates
        return _ENCODER.encode(value) + "\n"


def appended_tables(content: bytes) -> Iterator[dict[str, Any]]:
    """The tables of a JSONL file to which a process appends.

    A kill or a machine without power leaves a line cut short, or blank: it is skipped.
    """
    for line in content.splitlines(keepends=True):
        if line.endswith(b"\n"):
            with contextlib.suppress(ValueError):
                yield _table(line)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below `folder` by its relative path: `{path: {"sha256": …, "size": bytes}}`, sorted."""
    return {name: file_record(folder / name) for name in sizes(folder)}


def file_record(path: Path) -> dict[str, Any]:
    """The entry of a manifest for one file: `{"sha256": …, "size": bytes}`."""
    return {"sha256": sha256_file(path), "size": path.stat().st_size}


def sizes(folder: Path) -> dict[str, int]:
    """The size of every file below `folder` in bytes, by its relative path."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()
    }


def missing_file(folder: Path, expected: Mapping[str, int]) -> str | None:
    """What is wrong with the first file that is not as `expected` (as `sizes` gives it); None where all are there."""
    for path, size in expected.items():
        file = folder / path
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has changed: expected {size} bytes, found {file.stat().st_size}"
    return None


def manifest_digest(manifest: Mapping[str, Mapping[str, Any]]) -> str:
    """One digest for a folder: the sha256 over the canonical JSON of `{path: sha256}`."""
    return digest_json({path: entry["sha256"] for path, entry in manifest.items()})


def absolute(path: Path) -> Path:
    """As `Path.absolute`.

    Raises:
        UsageError: the path is relative, and the working directory has been removed.
    """
    try:
        return path.absolute()
    except FileNotFoundError:
        raise UsageError("the working directory no longer exists: change to another folder") from None


def working_directory() -> Path:
    """As `Path.cwd`.

    Raises:
        UsageError: it has been removed.
    """
    return absolute(Path())


def why_no_folder(path: Path) -> str | None:
    """Why `path` is not a writable folder and cannot become one, as words to follow its name; None if it is or can."""
    path = absolute(path)
    obstacle = _obstacle(path)
    if obstacle is None:
        return None
    place, what = obstacle
    return what if place == path else f"cannot be created: {place} {what}"


def why_no_file(path: Path) -> str | None:
    """Why no file can be written at `path`, as words to follow its name; None if one can.

    Only names, kinds and permissions are looked at. A special file (/dev/null) would be replaced, not written to.
    """
    path = absolute(path)
    if _too_long(path):
        return _TOO_LONG
    try:
        mode = _mode(path)
    except NotADirectoryError:
        mode = None
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    if mode is not None and stat.S_ISDIR(mode):
        return "is a folder"
    if mode is not None and not stat.S_ISREG(mode):
        return "is not a regular file"
    obstacle = _obstacle(path.parent)
    return None if obstacle is None else f"cannot be written: {obstacle[0]} {obstacle[1]}"


def _obstacle(path: Path) -> tuple[Path, str] | None:
    """What keeps an absolute path from being, or being made, a folder to write in: where, and what is wrong there."""
    for place in (path, *path.parents):
        if _too_long(place):
            return place, _TOO_LONG
        try:
            mode = _mode(place)
        except NotADirectoryError:
            continue
        except OSError as error:
            return place, f"cannot be used: {error.strerror}"
        if mode is not None:
            return _unfit(place, mode)
        if place.is_symlink():
            return place, "is a broken symlink"
    return None


def _unfit(place: Path, mode: int) -> tuple[Path, str] | None:
    """Why what is there is not a writable folder."""
    if not stat.S_ISDIR(mode):
        return place, "is a file" if stat.S_ISREG(mode) else "is not a folder"
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return place, "is not writable for this user"
    return None


def _too_long(path: Path) -> bool:
    return len(os.fsencode(path.name)) > _LONGEST_NAME


def _mode(path: Path) -> int | None:
    """What is at a path, links followed; None where nothing is."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
