"""Export of a registered model as a folder or an archive: real files in Hugging Face layout, its record and its card.

Everything is written under a temporary name until it is complete; the files' digests are checked while they are copied.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import RegistryError, UsageError
from modelwright.core.api.files import absolute, sync_folder, temporary_name, why_no_folder, writing
from modelwright.core.api.registry import ModelFile, ModelVersion
from modelwright.core.api.wording import either
from modelwright.core.registry.card import model_card
from modelwright.core.registry.record import RECORD, to_record

README = "README.md"
ARCHIVES = (".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".tbz", ".tbz2", ".txz", ".tzst")
CHUNK = 1 << 20

Advance = Callable[[int], None]
Check = Callable[[Path], None]


def export_model(
    registry: Registry,
    version: ModelVersion,
    destination: Path,
    advance: Advance,
    *,
    folder: Path | None = None,
    check: Check = lambda _: None,
) -> None:
    """Write a model to `destination`: an archive if the name ends in .tar, .tar.gz or .tgz, else a folder.

    Args:
        registry: where the model is.
        version: the model.
        destination: a path that does not exist yet, or an empty folder.
        advance: called with the number of bytes written since the last call.
        folder: where the model's files are; None for the registry.
        check: called with a folder that has the exported files, before anything appears at `destination`; what it
            raises ends the export.

    Raises:
        UsageError: the destination already exists.
        RegistryError: the model is damaged, or cannot be written.
    """
    destination = absolute(destination)
    archive = _is_archive(destination)
    refuse_taken(destination, folder=not archive)
    names = {file.path for file in version.files}
    if RECORD in names:
        raise RegistryError(f"{version.address} cannot be exported: one of its files is called {RECORD}")
    folder = folder or registry.folder(version)
    extra = {RECORD: _json(version)}
    if README not in names:
        extra[README] = model_card(version).encode()
    write = _write_archive if archive else _write_folder
    try:
        write(version, folder, extra, destination, advance, check)
    except OSError as error:
        # The file system often reports a temporary name, which no longer exists.
        raise RegistryError(
            f"{version.address} cannot be exported to {destination}: {error.strerror or error}"
        ) from error


def _is_archive(destination: Path) -> bool:
    """Whether the name is an archive's; names of other kinds of archives are refused."""
    name = destination.name
    if name.endswith(ARCHIVES):
        return True
    if name.lower().endswith((*ARCHIVES, *OTHER_ARCHIVES)):
        raise UsageError(
            f"{destination}: archives of this kind cannot be written: use the ending {either(ARCHIVES)}, or none for a "
            "folder"
        )
    return False


def _json(version: ModelVersion) -> bytes:
    return (json.dumps(to_record(version), indent=2, ensure_ascii=False) + "\n").encode()


def refuse_taken(destination: Path, *, folder: bool) -> None:
    """Check that something can be written at a path, and make its parent.

    Args:
        destination: the path.
        folder: whether a folder is to be written, which may replace an empty one.

    Raises:
        UsageError: something is there, or nothing can be written.
    """
    try:
        if not os.path.lexists(destination):
            # Finds a parent that is a file or not writable now, not after gigabytes are written.
            if why := why_no_folder(destination):
                raise UsageError(f"{destination} {why}: expected a new name, or an empty folder")
            destination.parent.mkdir(parents=True, exist_ok=True)
            return
        empty = folder and destination.is_dir() and not any(destination.iterdir())
    except OSError as error:
        raise UsageError(f"{destination} cannot be written: {error.strerror}") from error
    if not empty:
        raise UsageError(f"{destination} already exists: expected a new name, or an empty folder")


def _write_folder(
    version: ModelVersion, folder: Path, extra: dict[str, bytes], destination: Path, advance: Advance, check: Check
) -> None:
    target = destination.resolve()  # follows a link to an empty folder
    temporary = temporary_name(target)
    temporary.mkdir()
    try:
        for name, content in extra.items():
            (temporary / name).write_bytes(content)
        for file in version.files:
            place = temporary / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            with _checked(version, folder, file, advance) as reader, place.open("xb") as writer:
                shutil.copyfileobj(reader, writer, CHUNK)
        for parent, _, names in os.walk(temporary):
            for name in names:
                with Path(parent, name).open("rb") as opened:
                    os.fsync(opened.fileno())
            sync_folder(Path(parent))
        check(temporary)
        # Replaces an empty folder, but fails if it was filled in the meantime.
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UsageError(f"{destination}: it was created or filled by another program in the meantime") from error
        raise
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _write_archive(
    version: ModelVersion, folder: Path, extra: dict[str, bytes], destination: Path, advance: Advance, check: Check
) -> None:
    """Write an archive with one folder at its top; the record comes first, so that readers know the sizes."""
    top = f"{version.name}-{version.version}"
    with writing(destination) as file, contextlib.ExitStack() as stack:
        stream: IO[bytes] = file
        if destination.suffix != ".tar":
            # Weights hardly shrink at any level. Without time and name, the same model gives the same archive.
            stream = stack.enter_context(
                gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0)  # type: ignore[arg-type]
            )
        archive = stack.enter_context(tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT))
        for name, content in extra.items():
            archive.addfile(_member(version, f"{top}/{name}", len(content)), io.BytesIO(content))
        for each in version.files:
            with _checked(version, folder, each, advance) as reader:
                archive.addfile(_member(version, f"{top}/{each.path}", each.size), reader)
        # The archive has these very files: their digests were compared while they were written.
        check(folder)


def _member(version: ModelVersion, name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    info.mtime = int(version.created.timestamp())
    return info


class _Hashing(io.RawIOBase):
    """A reader that hashes what is read."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file = file
        self._advance = advance
        self._digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self.size += len(data)
        self._advance(len(data))
        return data

    def hexdigest(self) -> str:
        """Of what was read."""
        return self._digest.hexdigest()


@contextlib.contextmanager
def _checked(version: ModelVersion, folder: Path, file: ModelFile, advance: Advance) -> Iterator[IO[bytes]]:
    """A file of the model; an error at the end if its content is not what was registered."""
    with (folder / file.path).open("rb") as opened:
        reader = _Hashing(opened, advance)
        yield reader  # type: ignore[misc]
    if (reader.size, reader.hexdigest()) != (file.size, file.sha256):
        raise RegistryError(
            f"{version.address} cannot be exported: its {file.path} is damaged in the registry: "
            f"run modelwright models verify {version.address}"
        )
