"""A content-addressed store of files: each content once, under its sha256, never written again.

    files/
    ├── ab/abcdef…            a content, read-only
    └── trees/DIGEST/         a model: relative links into the contents, under the model's own file names

Links, because a model of many gigabytes is not kept twice; relative ones, so that a registry can be moved as a whole;
symbolic ones, because the kernel refuses hard links to other people's files (fs.protected_hardlinks) and a registry
is often shared. A tree is built when the model is added, so that reading needs no right to write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import frozen

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.files import TEMPORARY, sync_folder, writing
from modelwright.core.api.registry import ModelFile

TREES = "trees"
CHUNK = 1 << 20
# A copy in progress touches its file far more often than this, so what is older was left by a killed process.
ABANDONED_AFTER = 24 * 3600.0


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
        """Copy the files of `folder` that are not here yet; when this returns they are durable.

        Raises:
            RegistryError: a file changed after it was hashed.
        """
        files = tuple(files)
        self.root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        for file in files:
            if not self.holds(file):
                self._copy(folder / file.path, file)
        # Another process may have put a content here a moment ago, and not have made its name durable yet.
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
                raise RegistryError(f"{source} changed while it was being registered: stop what writes it, try again")
            # 0444, less what the umask withholds.
            os.fchmod(writer.fileno(), os.fstat(writer.fileno()).st_mode & 0o444)

    def _sweep(self) -> None:
        before = time.time() - ABANDONED_AFTER
        for left in self.root.glob(f"*/{TEMPORARY}*"):
            # Another process may sweep at the same time.
            with contextlib.suppress(FileNotFoundError):
                if left.lstat().st_mtime < before:
                    _remove(left)

    def tree(self, digest: str, files: Iterable[ModelFile]) -> Path:
        """The folder of a model, built if it is not there as it should be.

        Raises:
            RegistryError: a content is missing or has another size.
        """
        files = tuple(files)
        for file in files:
            if not self.holds(file):
                raise RegistryError(
                    f"{self.content(file.sha256)} is missing or cut short, and {file.path!r} of a model needs it: "
                    f"restore it, or register the same model again"
                )
        tree = self.root / TREES / digest
        links = {file.path: self._link(tree / file.path, file) for file in files}
        if _links(tree) != links:
            self._build(tree, links)
        return tree

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
    """Rename `temporary` to `tree`, unless someone else has just put the same there."""
    try:
        temporary.rename(tree)
    except OSError:
        if not os.path.lexists(tree):
            raise
        if _links(tree) == links:
            return
        # Somebody altered it: out of the way with it, whole.
        aside = _temporary(tree)
        tree.rename(aside)
        temporary.rename(tree)
        _remove(aside)


def _links(tree: Path) -> dict[str, str | None] | None:
    """What is in a tree: each link's path and target, None for what is no link; None where there is no tree."""
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


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
