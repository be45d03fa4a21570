"""What a person types or pipes in: standard input as text in UTF-8, whatever the locale says of a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from modelwright.core.api.errors import ModelwrightError, UsageError


class NotUtf8Error(UsageError):
    """What was typed or piped in is no text in UTF-8."""


def check_input(instead: str) -> None:
    """Look whether there is a standard input.

    Args:
        instead: what could be given in its place, for the error.

    Raises:
        UsageError: whoever started this program closed it.
    """
    if sys.stdin is None:
        raise UsageError(f"standard input is closed: give {instead}, or open it")


def read_text() -> str:
    """All of standard input.

    Raises:
        NotUtf8Error: it is no text in UTF-8.
        ModelwrightError: it cannot be read.
    """
    with _reading():
        return _decode(sys.stdin.buffer.read(), "standard input")


def read_line(prompt: str) -> str | None:
    """A line, asked for with `prompt` on a terminal; None at the end of the input.

    Raises:
        NotUtf8Error: it is no text in UTF-8; the next line may be.
        ModelwrightError: standard input cannot be read.
    """
    with _reading():
        return _typed(prompt) if sys.stdin.isatty() else _piped()


def _typed(prompt: str) -> str | None:
    try:
        # A terminal's encoding is the locale's; what that has no letter for comes as a surrogate, or not at all.
        return _decode(input(prompt).encode("utf-8", "surrogateescape"), "this line")
    except UnicodeError as error:
        raise NotUtf8Error("this line is not in the terminal's encoding") from error
    except EOFError:
        click.echo()
        return None


def _piped() -> str | None:
    line = sys.stdin.buffer.readline()
    return _decode(line, "this line").removesuffix("\n").removesuffix("\r") if line else None


def _decode(content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"{what} is not UTF-8 (byte {error.start + 1}): expected text in UTF-8") from error


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelwrightError(f"standard input cannot be read: {reason}") from error
