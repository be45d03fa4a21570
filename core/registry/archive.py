"""Archives of exported models, from anybody: what leads out of the folder, links, and what swells is refused.

Nothing is unpacked by `tarfile` itself: members are read one by one into files that this module opens.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.registry import ModelFile, ModelVersion
from modelwright.core.registry.record import LONGEST, RECORD, is_inside, read_record

CHUNK = 1 << 20
# tarfile reads headers in one piece, whatever length they claim; contents are read by the chunk.
LONGEST_READ = 4 << 20
MOST_MEMBERS = 100_000
# How many times its own size an archive may unfold to before its record has said how large the model is.
MOST_SWELLING = 100


class _Bounded:
    """A file of which nobody reads much at once."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(path.open("rb"))
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if zipped:
                file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="rb"))
            yield stack.enter_context(tarfile.open(fileobj=_Bounded(file), mode="r:"))  # type: ignore[call-overload]
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RegistryError(
            f"{path} is no whole .tar or .tar.gz archive: {reason:.200}; export or download it again"
        ) from error


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of an archive; folders are passed over.

    Raises:
        RegistryError: a member is neither, leads out of the archive, or there are too many.
    """
    for count, member in enumerate(archive):
        if count >= MOST_MEMBERS:
            raise RegistryError(f"{path} is refused: it has more than {MOST_MEMBERS} members")
        name = member.name.removeprefix("./").rstrip("/") or "."
        if name != "." and not is_inside(name):
            raise RegistryError(f"{path} is refused: its member {member.name!r:.200} leads out of the archive")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise RegistryError(
                f"{path} is refused: its member {member.name!r:.200} is no plain file (links, devices and sparse files "
                f"are not unpacked)"
            )
        member.name = name
        yield member


def find_record(path: Path) -> tuple[ModelVersion, str]:
    """The record in an archive, and the folder in which it stands there ("" at the top).

    Raises:
        RegistryError: there is none, or the archive is damaged or refused.
    """
    most = MOST_SWELLING * path.stat().st_size + LONGEST
    with _opened(path) as archive:
        for member in _members(archive, path):
            place = PurePosixPath(member.name)
            if place.name == RECORD and len(place.parts) <= 2:
                return _read(archive, member, path), "/".join(place.parts[:-1])
            most -= member.size
            if most < 0:
                raise RegistryError(f"{path} is refused: it unfolds to more than {MOST_SWELLING} times its size")
    raise RegistryError(
        f"{path} has no {RECORD}, so it is no exported model: unpack it, and import the folder with --name"
    )


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> ModelVersion:
    if member.size > LONGEST:
        raise RegistryError(f"{path}: its {RECORD} has {member.size} bytes, which no record has")
    reader = archive.extractfile(member)
    assert reader is not None
    with reader:
        parts = list(iter(lambda: reader.read(CHUNK), b""))
    return read_record(b"".join(parts), f"{path}: {RECORD}")


def unpack(path: Path, top: str, version: ModelVersion, folder: Path) -> list[str]:
    """Write a model's files, those of its record and no others, into `folder`.

    Returns:
        The members that are no files of the model.

    Raises:
        RegistryError: a file is missing, of another size or content, or the archive is damaged or refused.
    """
    wanted = {file.path: file for file in version.files}
    need, free = sum(file.size for file in version.files), shutil.disk_usage(folder).free
    if need > free:
        raise RegistryError(f"{path} cannot be unpacked: its files take {need} bytes, and {folder} has {free} left")
    others: list[str] = []
    with _opened(path) as archive:
        for member in _members(archive, path):
            name = _below(member.name, top)
            file = wanted.pop(name, None) if name is not None else None
            if file is None:
                _refuse_repeated(name, version, path)
                others.append(member.name)
            else:
                _extract(archive, member, file, folder, path)
    if wanted:
        raise RegistryError(f"{path} is not whole: its record names {min(wanted)!r}, which is not in it")
    return others


def _below(name: str, top: str) -> str | None:
    if not top:
        return name
    return name.removeprefix(f"{top}/") if name.startswith(f"{top}/") else None


def _refuse_repeated(name: str | None, version: ModelVersion, path: Path) -> None:
    if name in {file.path for file in version.files}:
        raise RegistryError(f"{path} is refused: it has {name!r:.200} twice")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, file: ModelFile, folder: Path, path: Path) -> None:
    if member.size != file.size:
        raise RegistryError(
            f"{path} is refused: {file.path!r} has {member.size} bytes, and its record says {file.size}"
        )
    place = folder / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    reader = archive.extractfile(member)
    assert reader is not None
    with reader, place.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise RegistryError(f"{path} is damaged: {file.path!r} is not what its record says; export it again")
