"""Files that a person names, opened only where reading them comes to an end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_named(path: Path, *, streams: bool = False) -> BinaryIO:
    """Open a file for reading. A named pipe is refused: it would make the program wait until somebody writes into it.

    Args:
        path: a regular file, or a link to one.
        streams: whether it may also be a pipe or a terminal that this process was started with, as `/dev/stdin` and
            the shell's `<(COMMAND)` are.

    Raises:
        OSError: it is none of these, or cannot be read; `strerror` says why.
    """
    status = path.stat()
    # A folder says itself that it is one.
    fitting = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or (streams and _is_ours(status))
    if not fitting:
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def _is_ours(status: os.stat_result) -> bool:
    """Whether one of this process's open files is the one with that status."""
    for name in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else ():  # noqa: PTH112, PTH208 - numbers, not paths
        try:
            same = os.path.samestat(os.fstat(int(name)), status)
        except OSError:  # the listing's own, closed by now
            continue
        if same:
            return True
    return False
