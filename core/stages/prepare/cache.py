"""Results that are kept by what they were made from: asked for again, they are there.

    cache/KIND/KEY/
    ├── entry.json          sha256 and size of every other file
    └── …                   what was made

A key is a digest of all that the result depends on, so that an entry is right for ever or never asked for again. An
entry appears whole; one that is damaged is made again. What is in use is linked from where it is used, so that an entry
can be removed at any time between two runs.
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
    """A file of an entry: its bytes, and how many names it has."""

    size: int
    names: int


@frozen(kw_only=True)
class Entry:
    """One result.

    Attributes:
        kind: what it is.
        path: its folder.
        used: when it was made or last asked for, in seconds since 1970.
        files: by inode, since entries share them, with each other and with runs.
    """

    kind: str
    path: Path
    used: float
    files: Mapping[int, KeptFile]


@frozen
class Cache:
    """The results below a folder, which need not be there yet.

    Attributes:
        root: the folder.
        since: entries that were made before this time, in nanoseconds of the folder's file system, count as none.
        lock: the descriptor by which it is held, for the processes that work for the holder; None where it is not held.
    """

    root: Path
    since: int = 0
    lock: int | None = None

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of an entry; None where there is none, or a damaged one."""
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
        """The folder of an entry; where there is none, `write` fills it."""
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
                        file.chmod(0o444)  # it is linked from elsewhere, and an edit there would be one here
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
                    return  # another process has made the same meanwhile
                _remove(path)
            else:
                break
        files.sync_folder(path.parent)

    def entries(self) -> Iterator[Entry]:
        """Every entry, by kind and key."""
        for kind in self._kinds():
            for path in sorted(kind.glob("[!.]*")):
                with contextlib.suppress(FileNotFoundError):  # a run beside this has just replaced it
                    stats = [file.stat() for file in path.rglob("*") if file.is_file()]
                    kept = {each.st_ino: KeptFile(each.st_size, each.st_nlink) for each in stats}
                    yield Entry(kind=kind.name, path=path, used=path.stat().st_mtime, files=kept)

    def remove(self, entry: Entry) -> None:
        """Remove an entry; the cache must be `locked` alone."""
        _remove(entry.path)

    @contextlib.contextmanager
    def locked(self, *, alone: bool = False, fresh: bool = False, sweep: bool = True) -> Iterator[Cache]:
        """Hold the cache: those who make and use entries together, whoever removes or replaces them alone.

        Args:
            alone: wait for nobody, and let nobody in.
            fresh: let what is there now count as none; this is alone, too.
            sweep: remove what killed processes have left, if nobody else is at work. Jobs that work side by side leave
                that to the one after them: some file systems of clusters keep each machine's locks to itself, and what
                one job writes would look left to another.

        Yields:
            The cache that is held.

        Raises:
            ModelwrightError: someone uses it, and it is to be held alone; or there is no place for it, or one without
                locks.
        """
        if why := why_no_folder(self.root):
            raise ModelwrightError(f"{self.root} {why}")
        with files.failing_as(f"{self.root} cannot be made"):
            self.root.mkdir(parents=True, exist_ok=True)
        # Open for reading, too: NFS locks as fcntl does, and gives a shared lock to none but readers.
        with (self.root / LOCK).open("a+b") as lock:
            if sweep:
                self._sweep(lock.fileno())
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if alone or fresh else fcntl.LOCK_SH)
            except BlockingIOError:
                raise ModelwrightError(f"{self.root} is in use: a run prepares its data; try again then") from None
            except OSError as error:
                raise ModelwrightError(
                    f"{self.root}: this file system gives no locks ({error.strerror}): "
                    "set MODELWRIGHT_HOME to a folder on another one"
                ) from error
            if fresh:
                os.utime(lock.fileno())  # the file system's clock may be another machine's
            try:
                yield evolve(self, since=os.fstat(lock.fileno()).st_mtime_ns if fresh else 0, lock=lock.fileno())
            finally:
                if sweep:
                    self._sweep(lock.fileno())

    def _sweep(self, lock: int) -> None:
        """Remove what killed processes have left, where nobody else is at work."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        for kind in self._kinds():
            files.remove_temporaries(kind)

    def _kinds(self) -> list[Path]:
        return sorted(path for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []


def total(entries: Iterable[Entry]) -> int:
    """The bytes of these entries' files, each counted once."""
    return sum({inode: file.size for entry in entries for inode, file in entry.files.items()}.values())


def freed(entries: Iterable[Entry]) -> int:
    """The bytes that are free when these entries go: those of files that no run and no other entry has."""
    names, sizes = Counter[int](), dict[int, KeptFile]()
    for entry in entries:
        names.update(entry.files.keys())
        sizes |= entry.files
    return sum(file.size for inode, file in sizes.items() if names[inode] == file.names)


@contextlib.contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Say where there was no more room: the error of a write to an open file does not.

    Raises:
        ModelwrightError: there was none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror or str(error)
        raise ModelwrightError(
            f"{folder} cannot be written to: {reason}; with room, the same command goes on"
        ) from error


def _manifest(folder: Path) -> dict[str, Any]:
    return {name: entry for name, entry in files.folder_manifest(folder).items() if name != ENTRY}


def _remove(path: Path) -> None:
    """Remove a folder so that it is gone at once, however long its files take."""
    aside = files.temporary_name(path, "old-")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        shutil.rmtree(aside)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no such thing, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
