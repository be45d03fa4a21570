"""Text files: unpacked, and split into lines of bounded size, so that memory does not grow with the file."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.extras import require
from modelwright.core.stages.prepare.readers.row import shown_path

# No training example is this long; a file without line ends must not fill the memory.
MAX_LINE = 16 * 2**20
CHUNK = 2**18
_HEAD = 8000  # bytes kept of a line that is too long, for rejected.jsonl


class Bytes(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """At least one byte and at most `size`; none at the end."""
        ...


class Line(NamedTuple):  # a NamedTuple because there is one for each row of the data
    r"""A line without its end, which is \n, \r\n or \r.

    Attributes:
        number: from 1.
        size: in bytes.
        text: the line; only its beginning if it is longer than `MAX_LINE`.
    """

    number: int
    size: int
    text: bytes

    @property
    def too_long(self) -> str | None:
        """Why the line is rejected, if it is too long."""
        if self.size <= MAX_LINE:
            return None
        return f"the row is too long: {self.size:,} bytes; the maximum is {MAX_LINE:,}"


class _Unfinished:
    """A line whose end was not read yet; only the beginning of a long one is kept."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._size = 0
        self._text = bytearray()

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= MAX_LINE:
            self._text += piece
        else:
            del self._text[_HEAD:]
            self._text += piece[: _HEAD - len(self._text)]

    def line(self) -> Line:
        return Line(self.number, self._size, bytes(self._text))


def read_lines(opened: Bytes) -> Iterator[Line]:
    r"""The lines of a file, empty ones included. A line ends with \n, \r\n or \r, in any mixture.

    The other line ends of Unicode (U+2028 and so on) do not end a line, because they may occur in JSON strings.
    """
    unfinished = _Unfinished(1)
    after_return = False
    while chunk := opened.read(CHUNK):
        text = chunk.removeprefix(b"\n") if after_return else chunk  # the second half of a \r\n that two chunks share
        after_return = chunk.endswith(b"\r")
        first, *others = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        unfinished.add(first)
        if not others:
            continue
        yield unfinished.line()
        number = unfinished.number
        for piece in others[:-1]:
            number += 1
            yield Line(number, len(piece), piece)
        unfinished = _Unfinished(number + 1)
        unfinished.add(others[-1])
    last = unfinished.line()
    if last.size:
        yield last


# What a text file must not begin with. UTF-32's mark comes before UTF-16's, which is its beginning.
_BEGINNINGS = (
    (b"\xff\xfe\x00\x00", "the file is UTF-32: save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "the file is UTF-32: save it as UTF-8"),
    (b"\xff\xfe", "the file is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "the file is UTF-16: save it as UTF-8"),
    (b"\x1f\x8b", "the file is gzip-compressed: rename it to end in .gz"),
    (b"\x28\xb5\x2f\xfd", "the file is Zstandard-compressed: rename it to end in .zst"),
    (b"PAR1", "the file is Parquet: rename it to end in .parquet"),
)
MARK = b"\xef\xbb\xbf"  # UTF-8's


class _Reading:
    """A file whose first bytes were read already."""

    def __init__(self, beginning: bytes, rest: Any) -> None:
        self._beginning = beginning
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes. What was unpacked before an error is returned before the error is raised."""
        beginning, self._beginning = self._beginning, b""
        return beginning or bytes(self._rest.read1(size))


def pyarrow_module(file: Path, name: str) -> Any:
    """`pyarrow` or one of its modules; plain text does not need it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return require(name, what=f"{shown_path(file)}: reading {file.suffix} files")


def _plain(file: Path) -> Any:
    return file.open("rb")


def _unzstd(file: Path) -> Any:
    return pyarrow_module(file, "pyarrow").input_stream(str(file), compression="zstd")


# Each opens a stream with read and read1. Several gzip members or Zstandard frames in a file are read as one.
PACKINGS: dict[str, Callable[[Path], Any]] = {"": _plain, ".gz": gzip.open, ".zst": _unzstd}


@contextlib.contextmanager
def opened_text(file: Path, packing: str) -> Iterator[Bytes]:
    """Open a text file, unpacked and without UTF-8's byte order mark.

    Raises:
        ModelwrightError: it does not begin like UTF-8 text; the message says what to do.
    """
    with PACKINGS[packing](file) as stream:
        beginning = bytes(stream.read(4))
        for start, trouble in _BEGINNINGS:
            if beginning.startswith(start):
                raise ModelwrightError(f"{shown_path(file)}: {trouble}")
        yield _Reading(beginning.removeprefix(MARK), stream)
