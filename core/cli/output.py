"""Standard output, told apart from other files when it fails: "no space left on device" alone does not say where."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class OutputError(Exception):
    """Standard output cannot be written. No OSError: whoever handles those means another file."""


class ReaderLeft(OutputError):  # noqa: N818 - not an error: whoever reads has enough (`modelwright models list | head`)
    """Nobody reads standard output any more."""


class _Output:
    """A stream whose failures are an `OutputError`; in all else it is that stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> _Output:
        """The stream's bytes: click writes to them where the encoding is ASCII."""
        return _Output(self._stream.buffer)

    def write(self, data: Any) -> Any:
        """As the stream."""
        with _failing():
            return self._stream.write(data)

    def writelines(self, lines: Any) -> None:
        """As the stream."""
        with _failing():
            self._stream.writelines(lines)

    def flush(self) -> None:
        """As the stream."""
        with _failing():
            self._stream.flush()


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderLeft from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"standard output cannot be written: {reason}: send it elsewhere") from error
    except UnicodeEncodeError as error:
        letter = ascii(error.object[error.start])
        raise OutputError(
            f"standard output cannot be written: its encoding {error.encoding} has no {letter}: "
            "set PYTHONIOENCODING=utf-8"
        ) from error


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """While the block runs, and when what it wrote is flushed at its end, `sys.stdout` fails with an `OutputError`.

    Raises:
        OutputError: it has failed, and is closed: what it still holds would fail once more when Python ends.
    """
    stream: TextIO | None = sys.stdout
    if stream is None:  # whoever started this program closed it
        yield
        return
    guarded = sys.stdout = cast("TextIO", _Output(stream))
    try:
        yield
        guarded.flush()
    except OutputError:
        with contextlib.suppress(OSError):
            stream.close()
        raise
    finally:
        sys.stdout = stream
