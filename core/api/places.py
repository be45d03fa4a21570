"""Where something is to be written: what stands in the way is known, and told in one line, before the work begins."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modelwright.core.api.errors import UsageError

# What the file systems in use take, in bytes.
_LONGEST_NAME = 255
_TOO_LONG = "has too long a name"


def absolute(path: Path) -> Path:
    """As `Path.absolute`.

    Raises:
        UsageError: the path is relative, and the working directory has been removed.
    """
    try:
        return path.absolute()
    except FileNotFoundError:
        raise UsageError("the working directory has been removed: change to a folder that is there") from None


def working_directory() -> Path:
    """As `Path.cwd`.

    Raises:
        UsageError: it has been removed.
    """
    return absolute(Path())


def why_no_folder(path: Path) -> str | None:
    """Why `path` is no folder to write in, and cannot be made one: what follows its name; None where it is or can."""
    path = absolute(path)
    obstacle = _obstacle(path)
    if obstacle is None:
        return None
    place, what = obstacle
    return what if place == path else f"cannot be made: {place} {what}"


def why_no_file(path: Path) -> str | None:
    """Why no file can be written at `path`, in the place of one that is there or not: what follows its name.

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
        return "is no regular file"
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
            return place, "is a link to what is not there"
    return None


def _unfit(place: Path, mode: int) -> tuple[Path, str] | None:
    """Why what is there is no folder to write in."""
    if not stat.S_ISDIR(mode):
        return place, "is a file" if stat.S_ISREG(mode) else "is no folder"
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return place, "is read-only for this user"
    return None


def _too_long(path: Path) -> bool:
    return len(os.fsencode(path.name)) > _LONGEST_NAME


def _mode(path: Path) -> int | None:
    """What is at a path, links followed; None where nothing is."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
