"""Archives of exported models, which may come from anyone: paths out of the folder, links and bombs are refused.

`tarfile` reads headers only. Members are copied one by one into files that this module opens.
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
from modelwright.core.api.wording import one_line
from modelwright.core.registry.record import LONGEST, RECORD, is_inside, read_record

CHUNK = 1 << 20
# tarfile reads a header in one piece, of any length that it claims; contents are read in chunks.
MAX_READ = 4 << 20
MAX_MEMBERS = 100_000
# Until the record has said how large the model is, an archive may expand to this multiple of its size.
MAX_EXPANSION = 100


class _Bounded:
    """A file that refuses to read much at once."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise tarfile.ReadError(f"its header claims {size} bytes")
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
        reason = one_line(error)
        raise RegistryError(
            f"{path} is not a complete .tar or .tar.gz archive: {reason:.200}; export or download it again"
        ) from error


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, without its folders.

    Raises:
        RegistryError: a member is neither a file nor a folder or has a path out of the archive, or there are too many.
    """
    for count, member in enumerate(archive):
        if count >= MAX_MEMBERS:
            raise RegistryError(f"{path} is refused: it has more than {MAX_MEMBERS} members")
        name = member.name.removeprefix("./").rstrip("/") or "."
        if name != "." and not is_inside(name):
            raise RegistryError(f"{path} is refused: its member {member.name!r:.200} is outside the archive")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise RegistryError(
                f"{path} is refused: its member {member.name!r:.200} is not a regular file (links, devices and sparse "
                "files are not unpacked)"
            )
        member.name = name
        yield member


def find_record(path: Path) -> tuple[ModelVersion, str]:
    """The record in an archive, and the folder that it is in ("" at the top).

    Raises:
        RegistryError: there is none, or the archive is damaged or refused.
    """
    most = MAX_EXPANSION * path.stat().st_size + LONGEST
    with _opened(path) as archive:
        for member in _members(archive, path):
            place = PurePosixPath(member.name)
            if place.name == RECORD and len(place.parts) <= 2:
                return _read(archive, member, path), "/".join(place.parts[:-1])
            most -= member.size
            if most < 0:
                raise RegistryError(f"{path} is refused: it expands to more than {MAX_EXPANSION} times its size")
    raise RegistryError(
        f"{path} is not an exported model, since it has no {RECORD}: unpack it, and import the folder with --name"
    )


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> ModelVersion:
    if member.size > LONGEST:
        raise RegistryError(f"{path}: its {RECORD} has {member.size} bytes, more than any record")
    reader = archive.extractfile(member)
    assert reader is not None
    with reader:
        parts = list(iter(lambda: reader.read(CHUNK), b""))
    return read_record(b"".join(parts), f"{path}: {RECORD}")


def unpack(path: Path, top: str, version: ModelVersion, folder: Path) -> list[str]:
    """Write a model's files, only those of its record, into `folder`.

    Returns:
        The members that do not belong to the model.

    Raises:
        RegistryError: a file is missing, of another size or content, or the archive is damaged or refused.
    """
    wanted = {file.path: file for file in version.files}
    need, free = sum(file.size for file in version.files), shutil.disk_usage(folder).free
    if need > free:
        raise RegistryError(
            f"{path} cannot be unpacked: its files take {need} bytes, but only {free} are free at {folder}"
        )
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
        raise RegistryError(f"{path} is incomplete: its record lists {min(wanted)!r}, which is not in it")
    return others


def _below(name: str, top: str) -> str | None:
    if not top:
        return name
    return name.removeprefix(f"{top}/") if name.startswith(f"{top}/") else None


def _refuse_repeated(name: str | None, version: ModelVersion, path: Path) -> None:
    if name in {file.path for file in version.files}:
        raise RegistryError(f"{path} is refused: it contains {name!r:.200} twice")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, file: ModelFile, folder: Path, path: Path) -> None:
    if member.size != file.size:
        raise RegistryError(
            f"{path} is refused: {file.path!r} has {member.size} bytes, but its record says {file.size}"
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
        raise RegistryError(f"{path} is damaged: {file.path!r} does not match its record; export or download it again")
