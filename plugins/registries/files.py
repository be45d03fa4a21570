"""A content-addressed store of files: each content is stored once, under its sha256, and never changed.

    files/
    ├── ab/abcdef…            a content, read-only
    └── trees/DIGEST/         a model: relative links into the contents, under the model's own file names

Trees have links, so that no model is stored twice. The links are relative, so that a registry can be moved as a whole,
and symbolic, because the kernel refuses hard links to other users' files (fs.protected_hardlinks) and registries are
often shared. A tree is built when the model is added, so reading needs no permission to write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from attrs import frozen

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.files import TEMPORARY, sha256_file, sync_folder, writing
from modelwright.core.api.registry import Collected, ModelFile

TREES = "trees"
FREED = f"{TEMPORARY}freed-"
CHUNK = 1 << 20
# A copy in progress touches its file far more often, so older ones were left by killed processes.
ABANDONED_AFTER = 24 * 3600.0


class ContentMissingError(RegistryError):
    """A content that a model needs is missing from the store."""


@frozen
class FileStore:
    """The folder `files/` of a registry."""

    root: Path

    def content(self, sha256: str) -> Path:
        """Where a content is, or would be."""
        return self.root / sha256[:2] / sha256

    def holds(self, file: ModelFile) -> bool:
        """Whether the content of `file` is there in its full size."""
        try:
            return self.content(file.sha256).stat().st_size == file.size
        except FileNotFoundError:
            return False

    def add(self, folder: Path, files: Iterable[ModelFile]) -> None:
        """Copy the files of `folder` that are missing here or damaged; they are durable when this returns.

        Raises:
            RegistryError: a file changed after it was hashed.
        """
        files = tuple(files)
        self.root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        for file in files:
            # Reads the bytes: a failing disk keeps a file's size.
            if self._problem(file) is not None:
                self._copy(folder / file.path, file)
        # Another process may have just put a content here without making its name durable yet.
        for folder_of_contents in {self.content(file.sha256).parent for file in files}:
            sync_folder(folder_of_contents)
        sync_folder(self.root)
        sync_folder(self.root.parent)

    def _copy(self, source: Path, file: ModelFile) -> None:
        digest = hashlib.sha256()
        with source.open("rb") as reader, writing(self.content(file.sha256)) as writer:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
                writer.write(chunk)
            if digest.hexdigest() != file.sha256:
                raise RegistryError(
                    f"{source} changed while it was being registered: stop the program that writes it, and try again"
                )
            # 0444 minus the umask.
            os.fchmod(writer.fileno(), os.fstat(writer.fileno()).st_mode & 0o444)

    def _sweep(self) -> None:
        before = time.time() - ABANDONED_AFTER
        for left in self.root.glob(f"*/{TEMPORARY}*"):
            # Another process may sweep at the same time.
            with contextlib.suppress(FileNotFoundError):
                if left.lstat().st_mtime < before:
                    _remove(left)

    def tree(self, digest: str, files: Iterable[ModelFile]) -> Path:
        """The folder of a model, which is built if it is missing or wrong.

        Raises:
            ContentMissingError: a content is missing or has another size.
        """
        files = tuple(files)
        for file in files:
            if not self.holds(file):
                raise ContentMissingError(
                    f"{self.content(file.sha256)} is missing or cut short, but a model needs it as {file.path!r}: "
                    f"restore it from a backup, or register the same model again"
                )
        tree = self.root / TREES / digest
        links = {file.path: self._link(tree / file.path, file) for file in files}
        if _links(tree) != links:
            self._build(tree, links)
        return tree

    def complete(self, digest: str, files: Iterable[ModelFile]) -> bool:
        """Whether every content of a model and its tree are in the store."""
        files = tuple(files)
        tree = self.root / TREES / digest
        links = {file.path: self._link(tree / file.path, file) for file in files}
        return all(self.holds(file) for file in files) and _links(tree) == links

    def problems(self, files: Iterable[ModelFile]) -> Iterator[str]:
        """Hash every content again: a line for each file whose content is missing or changed."""
        known: dict[str, str | None] = {}
        for file in files:
            if file.sha256 not in known:
                known[file.sha256] = self._problem(file)
            if reason := known[file.sha256]:
                yield f"{file.path}: {self.content(file.sha256)} {reason}"

    def _problem(self, file: ModelFile) -> str | None:
        path = self.content(file.sha256)
        try:
            size = path.stat().st_size
            if size != file.size:
                return f"has {size} bytes, expected {file.size}"
            found = sha256_file(path)
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None if found == file.sha256 else f"is damaged: its sha256 is {found[:12]}…"

    def unneeded(self, contents: AbstractSet[str]) -> Collected:
        """Count what `set_aside` and `empty` would free."""
        return _count((*self._unneeded_contents(contents), *self.root.glob(f"*/{FREED}*")))

    def set_aside(self, contents: AbstractSet[str], trees: AbstractSet[str]) -> None:
        """Rename the contents and trees in neither set to unused names, which is quick for any size.

        Only the holder of the database's write lock may call this, so that no row that needs them is being written.
        Nothing is created, since a full disk is a reason to collect.
        """
        unneeded_trees = (path for path in (self.root / TREES).glob("[0-9a-f]*") if path.name not in trees)
        for path in (*unneeded_trees, *self._unneeded_contents(contents)):
            path.rename(path.with_name(f"{FREED}{path.name}-{uuid.uuid4().hex[:8]}"))

    def empty(self) -> Collected:
        """Remove everything that was set aside, by this or by an earlier, killed collection."""
        heap = list(self.root.glob(f"*/{FREED}*"))
        freed = _count(heap)
        for path in heap:
            # Another process may be removing the same.
            with contextlib.suppress(FileNotFoundError):
                _remove(path)
        return freed

    def _unneeded_contents(self, needed: AbstractSet[str]) -> list[Path]:
        return [path for path in self.root.glob("[0-9a-f][0-9a-f]/[0-9a-f]*") if path.name not in needed]

    def _link(self, place: Path, file: ModelFile) -> str:
        return os.path.relpath(self.content(file.sha256), place.parent)

    def _build(self, tree: Path, links: Mapping[str, str]) -> None:
        tree.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(tree)
        try:
            for path, target in links.items():
                place = temporary / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(target)
            for folder, _, _ in os.walk(temporary):
                sync_folder(Path(folder))
            _put_in_place(temporary, tree, links)
            sync_folder(tree.parent)
        finally:
            if temporary.exists():
                _remove(temporary)


def _put_in_place(temporary: Path, tree: Path, links: Mapping[str, str]) -> None:
    """Rename `temporary` to `tree`, unless another process has just built the same tree."""
    try:
        temporary.rename(tree)
    except OSError:
        if not os.path.lexists(tree):
            raise
        if _links(tree) == links:
            return
        # It was altered: move it aside as a whole.
        aside = _temporary(tree)
        tree.rename(aside)
        temporary.rename(tree)
        _remove(aside)


def _links(tree: Path) -> dict[str, str | None] | None:
    """The content of a tree: each link's path and target, None for other files; None if there is no tree."""
    if tree.is_symlink() or not tree.is_dir():
        return None
    found: dict[str, str | None] = {}
    for parent, folders, names in os.walk(tree):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                found[path.relative_to(tree).as_posix()] = path.readlink().as_posix()
            elif name in names:
                found[path.relative_to(tree).as_posix()] = None
    return found


def _count(places: Iterable[Path]) -> Collected:
    """Count the regular files at or below these paths, without links."""
    count, size = 0, 0
    for place in places:
        for path in (place, *place.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # another process is removing it
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    count, size = count + 1, size + status.st_size
    return Collected(contents=count, size=size)


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
