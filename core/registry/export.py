"""A registered model as a folder or an archive that anybody can use: real files in Hugging Face layout, and its record.

What is written stands under a temporary name until it is whole; the files' digests are checked while they are copied.
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
from modelwright.core.registry.card import model_card
from modelwright.core.registry.record import RECORD, to_record

README = "README.md"
ARCHIVES = (".tar", ".tar.gz", ".tgz")
OTHER_ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst", ".tbz", ".tbz2", ".txz", ".tzst")
CHUNK = 1 << 20

Advance = Callable[[int], None]


def export_model(registry: Registry, version: ModelVersion, destination: Path, advance: Advance) -> None:
    """Write a model to `destination`: an archive if the name ends in .tar, .tar.gz or .tgz, else a folder.

    Args:
        registry: where the model is.
        version: the model.
        destination: what does not exist yet, or an empty folder.
        advance: told the bytes of the model that were written.

    Raises:
        UsageError: something is there already.
        RegistryError: the model is damaged, or cannot be written.
    """
    destination = absolute(destination)
    archive = _is_archive(destination)
    _refuse_taken(destination, archive=archive)
    names = {file.path for file in version.files}
    if RECORD in names:
        raise RegistryError(f"{version.address} cannot be exported: one of its own files is called {RECORD}")
    folder = registry.folder(version)
    extra = {RECORD: _json(version)}
    if README not in names:
        extra[README] = model_card(version).encode()
    write = _write_archive if archive else _write_folder
    try:
        write(version, folder, extra, destination, advance)
    except OSError as error:
        # The name that the file system reports is often a temporary one, and gone by now.
        raise RegistryError(
            f"{version.address} cannot be exported to {destination}: {error.strerror or error}"
        ) from error


def _is_archive(destination: Path) -> bool:
    """Whether the name is an archive's; a name that everybody takes for another kind of archive is refused."""
    name = destination.name
    if name.endswith(ARCHIVES):
        return True
    if name.lower().endswith((*ARCHIVES, *OTHER_ARCHIVES)):
        raise UsageError(
            f"{destination}: no archive of this kind is written: let the name end in {', '.join(ARCHIVES[:-1])} or "
            f"{ARCHIVES[-1]}, or in none for a folder"
        )
    return False


def _json(version: ModelVersion) -> bytes:
    return (json.dumps(to_record(version), indent=2, ensure_ascii=False) + "\n").encode()


def _refuse_taken(destination: Path, *, archive: bool) -> None:
    try:
        if not os.path.lexists(destination):
            # A folder above that is a file, or that may not be written, is found here, not after gigabytes.
            if why := why_no_folder(destination):
                raise UsageError(f"{destination} {why}: expected a new name, or an empty folder")
            destination.parent.mkdir(parents=True, exist_ok=True)
            return
        empty = not archive and destination.is_dir() and not any(destination.iterdir())
    except OSError as error:
        raise UsageError(f"{destination} cannot be written: {error.strerror}") from error
    if not empty:
        what = "a file of that name" if archive else "something"
        raise UsageError(f"{destination}: there is {what} already; expected a new name, or an empty folder")


def _write_folder(
    version: ModelVersion, folder: Path, extra: dict[str, bytes], destination: Path, advance: Advance
) -> None:
    target = destination.resolve()  # an empty folder behind a link is the place that is meant
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
        # Takes the place of an empty folder; of one that was filled meanwhile it does not.
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UsageError(f"{destination}: something was put there meanwhile") from error
        raise
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _write_archive(
    version: ModelVersion, folder: Path, extra: dict[str, bytes], destination: Path, advance: Advance
) -> None:
    """Write an archive with one folder at its top; the record is the first in it, so that readers know the sizes."""
    top = f"{version.name}-{version.version}"
    with writing(destination) as file, contextlib.ExitStack() as stack:
        stream: IO[bytes] = file
        if destination.suffix != ".tar":
            # Weights hardly shrink, whatever the level. Time and name are left out: one model, one archive.
            stream = stack.enter_context(
                gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0)  # type: ignore[arg-type]
            )
        archive = stack.enter_context(tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT))
        for name, content in extra.items():
            archive.addfile(_member(version, f"{top}/{name}", len(content)), io.BytesIO(content))
        for each in version.files:
            with _checked(version, folder, each, advance) as reader:
                archive.addfile(_member(version, f"{top}/{each.path}", each.size), reader)


def _member(version: ModelVersion, name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    info.mtime = int(version.created.timestamp())
    return info


class _Hashing(io.RawIOBase):
    """A reader that hashes what it gives."""

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
    """A file of the model, refused at the end if it was not what was registered."""
    with (folder / file.path).open("rb") as opened:
        reader = _Hashing(opened, advance)
        yield reader  # type: ignore[misc]
    if (reader.size, reader.hexdigest()) != (file.size, file.sha256):
        raise RegistryError(
            f"{version.address} cannot be exported: its {file.path} is damaged in the registry; "
            f"see modelwright models verify {version.address}"
        )
