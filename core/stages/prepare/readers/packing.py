"""How a file is packed: plain, gzip or Zstandard; and the first look at its bytes."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.extras import require
from modelwright.core.stages.prepare.readers.lines import Bytes
from modelwright.core.stages.prepare.readers.row import shown_path

# What a text file must not begin with. UTF-32's mark before UTF-16's: the one begins with the other.
_BEGINNINGS = (
    (b"\xff\xfe\x00\x00", "it is UTF-32: save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "it is UTF-32: save it as UTF-8"),
    (b"\xff\xfe", "it is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16: save it as UTF-8"),
    (b"\x1f\x8b", "it is gzip data: let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "it is Zstandard data: let its name end in .zst"),
    (b"PAR1", "it is Parquet data: let its name end in .parquet"),
)
MARK = b"\xef\xbb\xbf"  # UTF-8's


class _Reading:
    """The rest of a file, behind the beginning that was looked at."""

    def __init__(self, beginning: bytes, rest: Any) -> None:
        self._beginning = beginning
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes. What was unpacked before an error is given before the error is raised."""
        beginning, self._beginning = self._beginning, b""
        return beginning or bytes(self._rest.read1(size))


def pyarrow_module(file: Path, name: str) -> Any:
    """`pyarrow` or one of its modules, which plain text does without.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return require(name, what=f"{shown_path(file)}: reading {file.suffix} files")


def _plain(file: Path) -> Any:
    return file.open("rb")


def _unzstd(file: Path) -> Any:
    return pyarrow_module(file, "pyarrow").input_stream(str(file), compression="zstd")


# Each opens a stream with read and read1; files of several gzip members or Zstandard frames are one.
PACKINGS: dict[str, Callable[[Path], Any]] = {"": _plain, ".gz": gzip.open, ".zst": _unzstd}


@contextlib.contextmanager
def opened_text(file: Path, packing: str) -> Iterator[Bytes]:
    """Open a text file, unpacked and without UTF-8's byte order mark.

    Raises:
        ModelwrightError: it begins as no UTF-8 text does; the message says what to do.
    """
    with PACKINGS[packing](file) as stream:
        beginning = bytes(stream.read(4))
        for start, trouble in _BEGINNINGS:
            if beginning.startswith(start):
                raise ModelwrightError(f"{shown_path(file)}: {trouble}")
        yield _Reading(beginning.removeprefix(MARK), stream)
