"""The cache of prepared data: results, found by a digest of what they were made from.

    cache/KIND/KEY/
    ├── entry.json          sha256 and size of every other file
    └── …                   the result

A key is a digest of everything that the result depends on, so an entry never becomes outdated. Entries appear whole,
and damaged ones are made again. Runs hold links to the files that they use, so entries can be removed between runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.files import why_no_folder

ENTRY, LOCK = "entry.json", ".lock"


@frozen
class KeptFile:
    """A file of an entry: its size in bytes, and its number of hard links."""

    size: int
    names: int


@frozen(kw_only=True)
class Entry:
    """A cached result.

    Attributes:
        kind: its kind, such as examples or tokens.
        path: its folder.
        used: when it was last used, in seconds since 1970.
        files: by inode, because entries share files with each other and with runs.
    """

    kind: str
    path: Path
    used: float
    files: Mapping[int, KeptFile]


@frozen
class Cache:
    """The cache in a folder, which need not exist yet.

    Attributes:
        root: the folder.
        since: ignore entries made before this time, in nanoseconds of the clock of the file system.
        lock: the descriptor of the lock, for worker processes to inherit; None if the cache is not locked.
    """

    root: Path
    since: int = 0
    lock: int | None = None

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of an entry; None if there is none, or it is damaged."""
        path = self.root / kind / key
        try:
            manifest = _manifest(path)
            made = (path / ENTRY).stat().st_mtime_ns
            if not manifest or made < self.since or files.read_json(path / ENTRY) != manifest:
                return None
            os.utime(path)
        except (OSError, ValueError):
            return None
        return path

    def make(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """The folder of an entry; if there is none, `write` makes it."""
        found = self.get(kind, key)
        if found is not None:
            return found
        path = self.root / kind / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = files.temporary_name(path)
        temporary.mkdir()
        try:
            with naming_full_disk(self.root):
                write(temporary)
                for file in temporary.rglob("*"):
                    if file.is_file():
                        file.chmod(0o444)  # runs link to it, and an edit there would change it here
                        files.sync_file(file)
                files.write_json(temporary / ENTRY, _manifest(temporary))
                self._publish(temporary, kind, key)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)
        return path

    def _publish(self, temporary: Path, kind: str, key: str) -> None:
        path = self.root / kind / key
        while True:
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                if self.get(kind, key) is not None:
                    return  # another process made the same entry meanwhile
                _remove(path)
            else:
                break
        files.sync_folder(path.parent)

    def entries(self) -> Iterator[Entry]:
        """Every entry, by kind and key."""
        for kind in self._kinds():
            for path in sorted(kind.glob("[!.]*")):
                with contextlib.suppress(FileNotFoundError):  # another run has just replaced it
                    stats = [file.stat() for file in path.rglob("*") if file.is_file()]
                    kept = {each.st_ino: KeptFile(each.st_size, each.st_nlink) for each in stats}
                    yield Entry(kind=kind.name, path=path, used=path.stat().st_mtime, files=kept)

    def remove(self, entry: Entry) -> None:
        """Remove an entry; the cache must be `locked` with `alone`."""
        _remove(entry.path)

    @contextlib.contextmanager
    def locked(self, *, alone: bool = False, fresh: bool = False, sweep: bool = True) -> Iterator[Cache]:
        """Lock the cache: shared to make and use entries, exclusive (`alone`, `fresh`) to remove or replace them.

        Args:
            alone: lock exclusively, without waiting.
            fresh: ignore all present entries; implies `alone`.
            sweep: remove leftovers of killed processes, if nobody else holds the lock. Jobs that run in parallel must
                not: some file systems of clusters do not share locks between machines, so what another job is writing
                would look like a leftover.

        Yields:
            The locked cache.

        Raises:
            ModelwrightError: it is in use and was to be locked exclusively; or the folder cannot be made or locked.
        """
        if why := why_no_folder(self.root):
            raise ModelwrightError(f"{self.root} {why}")
        with files.failing_as(f"{self.root} cannot be made"):
            self.root.mkdir(parents=True, exist_ok=True)
        # Open for reading as well: NFS implements flock by fcntl, which needs that for a shared lock.
        with (self.root / LOCK).open("a+b") as lock:
            if sweep:
                self._sweep(lock.fileno())
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if alone or fresh else fcntl.LOCK_SH)
            except BlockingIOError:
                raise ModelwrightError(
                    f"{self.root} is in use by a run that is preparing its data: try again later"
                ) from None
            except OSError as error:
                raise ModelwrightError(
                    f"{self.root}: this file system does not support locks ({error.strerror}): "
                    "set MODELWRIGHT_HOME to a folder on another one"
                ) from error
            if fresh:
                os.utime(lock.fileno())  # use the clock of the file system, which may be another machine's
            try:
                yield evolve(self, since=os.fstat(lock.fileno()).st_mtime_ns if fresh else 0, lock=lock.fileno())
            finally:
                if sweep:
                    self._sweep(lock.fileno())

    def _sweep(self, lock: int) -> None:
        """Remove leftovers of killed processes, if nobody else holds the lock."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        for kind in self._kinds():
            files.remove_temporaries(kind)

    def _kinds(self) -> list[Path]:
        return sorted(path for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []


def total(entries: Iterable[Entry]) -> int:
    """The total size of these entries in bytes; shared files count once."""
    return sum({inode: file.size for entry in entries for inode, file in entry.files.items()}.values())


def freed(entries: Iterable[Entry]) -> int:
    """The bytes freed by removing these entries: those of files that no run and no other entry links to."""
    names, sizes = Counter[int](), dict[int, KeptFile]()
    for entry in entries:
        names.update(entry.files.keys())
        sizes |= entry.files
    return sum(file.size for inode, file in sizes.items() if names[inode] == file.names)


@contextlib.contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Name the folder if the disk is full, which the error of a write to an open file does not.

    Raises:
        ModelwrightError: the disk is full, or the quota is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror or str(error)
        raise ModelwrightError(
            f"cannot write to {folder}: {reason}: free some space, then run the same command again to continue"
        ) from error


def _manifest(folder: Path) -> dict[str, Any]:
    return {name: entry for name, entry in files.folder_manifest(folder).items() if name != ENTRY}


def _remove(path: Path) -> None:
    """Remove a folder: rename it first, so that it disappears at once."""
    aside = files.temporary_name(path, "old-")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        shutil.rmtree(aside)


def link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
