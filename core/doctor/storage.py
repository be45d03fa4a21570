"""Where runs and the cache lie: how much room there is, and whether its file system gives locks."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Any

from modelwright.core.api import files
from modelwright.core.api.files import why_no_folder

# Mount options by which a shared file system keeps each machine's locks to itself.
_ALONE = {"localflock", "nolock", "local_lock=flock", "local_lock=all"}


def storage_facts(folder: Path) -> dict[str, Any]:
    """What holds of a folder, which need not be there yet.

    Returns:
        `path`, `total` and `free` (bytes), `file_system`; `locks`: "yes", "this machine only" (a shared file system
        whose other machines do not see them), or why there are none; `problem`: why nothing can be written there, or
        None.
    """
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    kind, options = _mount(there)
    problem = why_no_folder(folder)
    usage = shutil.disk_usage(there)
    return {
        "path": str(folder),
        "total": usage.total,
        "free": usage.free,
        "file_system": kind,
        "locks": "unknown" if problem else _locks(there, options),
        "problem": problem,
    }


def _mount(folder: Path) -> tuple[str | None, set[str]]:
    """The kind of the file system that a folder is on, and how it is mounted (proc(5), mountinfo)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None, set()
    real = Path(os.path.realpath(folder))
    best: tuple[int, str | None, set[str]] = (-1, None, set())
    for line in lines:
        before, _, after = line.partition(" - ")
        _, _, _, _, place, here, *_ = before.split()
        kind, _, options = after.split()[:3]
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place)  # a space is \040
        if real.is_relative_to(place) and len(place) >= best[0]:
            best = len(place), kind, {*here.split(","), *options.split(",")}
    return best[1], best[2]


def _locks(folder: Path, options: set[str]) -> str:
    path = files.temporary_name(folder / "locks")
    try:
        with path.open("a+b") as one, path.open("a+b") as other:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return "this machine only" if options & _ALONE else "yes"
            return "two processes get the same one"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        path.unlink(missing_ok=True)
