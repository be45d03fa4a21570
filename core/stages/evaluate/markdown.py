"""Markdown of texts that nobody chose for it: what a model wrote cannot become a heading, a link or a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# An underscore between letters or digits means nothing in Markdown.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~#!&]|(?<![^\W_])_|_(?![^\W_]))")
_FENCE = re.compile(r"`{3,}")


def plain(text: str) -> str:
    """`text` on one line, every character of it shown as it is."""
    return _SPECIAL.sub(r"\\\1", printable(text.replace("\n", " ")))


def printable(text: str) -> str:
    """Control characters, and those that turn the writing's direction, as escapes; line feeds and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def cut(text: str, *, characters: int, lines: int) -> str:
    """The beginning of `text`, with a note of what is left out."""
    kept = "\n".join(text.split("\n")[:lines])[:characters]
    left = len(text) - len(kept)
    return f"{kept} … ({left:,} characters more)" if left else text


def block(text: str) -> str:
    """`text` as a code block, fenced by more backticks than it has in a row."""
    longest = max((len(run) for run in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures. The cells are Markdown already."""
    lines = [columns, [":--"] + ["--:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
