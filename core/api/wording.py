"""Pieces that error messages are made of: one line out of an exception, shortened lists, suggestions, choices."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence


def printable(text: str, *, keep: str = "") -> str:
    """`text` with the characters that cannot be printed escaped as in TOML, except for those in `keep`."""
    return "".join(
        character if character.isprintable() or character in keep
        else f"\\u{ord(character):04x}" if ord(character) < 0x10000
        else f"\\U{ord(character):08x}"
        for character in text
    )  # fmt: skip


def one_line(error: BaseException | str) -> str:
    """The text of an error on one line: white space is collapsed. An error without text gives its type's name."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException | str) -> str:
    """The first line of an error that is not blank, for libraries that add pages of advice; else its type's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), "") or type(error).__name__


def listed(items: Sequence[object], most: int, show: Callable[[object], str] = str) -> str:
    """`a, b and 3 more`: at most `most` of the items by name, and the number of the rest."""
    named = ", ".join(map(show, items[:most]))
    return f"{named} and {len(items) - most} more" if len(items) > most else named


def either(choices: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *rest, last = choices
    return f"{', '.join(rest)} or {last}" if rest else last


def closest(word: str, words: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The one of `words` that was probably meant, ignoring case; None if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in words}
    close = difflib.get_close_matches(word.lower()[:200], by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None
