r"""How a model's text is read: its thinking (`<think>…</think>`), and the answer that it states.

Formats read reference answers with these functions and metrics read a model's; preparing, evaluating and serving tell
thinking and answer apart with them. So the same place in a text means the same everywhere.
"""

from __future__ import annotations

import re
from enum import Enum

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
# Before the answer of GSM8K, and of a solution in LaTeX.
HASHES = "####"
BOX = r"\boxed"
_OPENING = re.compile(r"\s*(\{|[^\s{}\\A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, stripped; None if there is none.

    Braces nest, and escaped ones (`\{`) do not count. A box that is not closed (an output cut short) is skipped. A
    box without braces holds one character: `\boxed 5`. The time is linear in the length of the text.
    """
    end = len(text)
    while (start := text.rfind(BOX, 0, end)) >= 0:
        opening = _OPENING.match(text, start + len(BOX), end)
        if opening is not None:
            if opening[1] != "{":
                return opening[1]
            close = _closing_brace(text, opening.end(), end)
            if close is not None:
                return text[opening.end() : close].strip()
        # A box around this unclosed one cannot close after it either: the next search need not look beyond it.
        end = start
    return None


def _closing_brace(text: str, start: int, end: int) -> int | None:
    """Where the brace closes that was opened before `start`; None where it does not before `end`."""
    depth = 1
    for brace in _BRACE.finditer(text, start, end):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last `####`, stripped; None if there is no `####` or nothing after it."""
    _, hashes, rest = text.rpartition(HASHES)
    return (rest.partition("\n")[0].strip() or None) if hashes else None


class _Place(Enum):
    """How far a text has come: before its first word, in its thinking, just behind it, in its answer."""

    START = "start"
    THINKING = "thinking"
    GAP = "gap"
    ANSWER = "answer"


class ThinkingSplitter:
    """Splits a text that comes in pieces into thinking and answer, as `split_thinking` splits a whole text.

    Thinking comes first, after white space at most, and ends with the first `</think>`; tags anywhere else are
    ordinary text. White space around the thinking is removed, and so is the white space between it and the answer. A
    text without thinking is the answer, unchanged. If the thinking is never closed, there is no answer.

    Args:
        inside: whether the prompt already ends with `<think>`; a model that writes the tag again does no harm.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self._place = _Place.START
        # What cannot be given yet: white space that may be an end's, and what may be the beginning of a tag.
        self._held = ""
        self._thought = False

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; gives the new text of the thinking and of the answer as far as it is certain."""
        self._held += text
        thinking = answer = ""
        if self._place is _Place.START:
            self._start()
        if self._place is _Place.THINKING:
            thinking = self._think()
        if self._place is _Place.GAP:
            self._held = self._held.lstrip()
            self._place = _Place.ANSWER if self._held else _Place.GAP
        if self._place is _Place.ANSWER:
            answer, self._held = self._held, ""
        return thinking, answer

    def finish(self) -> tuple[str, str]:
        """End the text; gives the rest of the thinking and of the answer."""
        held, self._held = self._held, ""
        if self._place is _Place.THINKING:
            return held.rstrip(), ""
        if self._place is _Place.START and self._inside:
            return held.strip(), ""
        return "", held

    def _start(self) -> None:
        """Leave the start as soon as it is clear whether thinking begins there."""
        words = self._held.lstrip()
        if not words or (len(words) < len(THINK_OPEN) and THINK_OPEN.startswith(words)):
            return
        if words.startswith(THINK_OPEN):
            self._place, self._held = _Place.THINKING, words.removeprefix(THINK_OPEN)
        else:
            self._place = _Place.THINKING if self._inside else _Place.ANSWER

    def _think(self) -> str:
        """What is certain of the thinking: it ends with a word, and no beginning of a tag is in it."""
        if not self._thought:
            self._held = self._held.lstrip()
        thought, closed, rest = self._held.partition(THINK_CLOSE)
        if closed:
            self._place, self._held = _Place.GAP, rest
            return thought.rstrip()
        certain = thought[: len(thought) - _begun(thought)].rstrip()
        self._held = thought[len(certain) :]
        self._thought = self._thought or bool(certain)
        return certain


def split_thinking(text: str, *, inside: bool = False) -> tuple[str | None, str]:
    """Thinking (None if there is none or it is empty) and answer of a whole text; see `ThinkingSplitter`."""
    splitter = ThinkingSplitter(inside=inside)
    thinking, answer = (piece + rest for piece, rest in zip(splitter.feed(text), splitter.finish(), strict=True))
    return thinking or None, answer


def _begun(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of the closing tag."""
    return next((length for length in range(len(THINK_CLOSE) - 1, 0, -1) if text.endswith(THINK_CLOSE[:length])), 0)
