r"""What of a text is the answer: what follows `<think>…</think>`, and in a solution the last `\boxed{…}` or `####`.

Formats read training data with these functions; evaluation, metrics and serving read what a model wrote. So all of them
find the same thinking and the same answer.
"""

from __future__ import annotations

import re
from enum import Enum

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

# LaTeX's box, and the mark of GSM8K's solutions.
BOX = r"\boxed"
HASHES = "####"
_OPENING = re.compile(r"\s*(\{|[^\s{}\\A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


class _Place(Enum):
    """Where in a text the splitter is: before the first word, in the thinking, just after it, in the answer."""

    START = "start"
    THINKING = "thinking"
    GAP = "gap"
    ANSWER = "answer"


class ThinkingSplitter:
    """Separates thinking from answer in a text that arrives in pieces; the result does not depend on the pieces.

    Thinking comes first, after nothing but white space, and ends at the first `</think>`; tags anywhere else are
    ordinary text. White space is stripped from both ends of the thinking and from the beginning of the answer after it.
    A text without thinking is the answer, unchanged. If the thinking is never closed, all of the text is thinking and
    the answer is empty.

    Args:
        inside: whether the prompt already opened the thinking (`Renderer.opens_thinking`); if the model opens it again,
            that tag is dropped.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self._place = _Place.START
        # Not certain yet: white space that may be at an end, and the possible beginning of a tag.
        self._held = ""
        self._thought = False

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return the new thinking and the new answer, as far as both are certain."""
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
        """Return the rest of the thinking and of the answer: the text has ended."""
        held, self._held = self._held, ""
        if self._place is _Place.THINKING:
            return held.rstrip(), ""
        if self._place is _Place.START and self._inside:
            return held.strip(), ""
        return "", held

    def _start(self) -> None:
        """Decide where the text begins, as soon as that is clear."""
        words = self._held.lstrip()
        if not words or (len(words) < len(THINK_OPEN) and THINK_OPEN.startswith(words)):
            return
        if words.startswith(THINK_OPEN):
            self._place, self._held = _Place.THINKING, words.removeprefix(THINK_OPEN)
        else:
            self._place = _Place.THINKING if self._inside else _Place.ANSWER

    def _think(self) -> str:
        """The part of the thinking that is certain: up to a word's end, before anything that may become a tag."""
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
    """Split a whole text into its thinking (None if there is none, or if it is empty) and its answer.

    `ThinkingSplitter` has the rules.
    """
    splitter = ThinkingSplitter(inside=inside)
    thinking, answer = (piece + rest for piece, rest in zip(splitter.feed(text), splitter.finish(), strict=True))
    return thinking or None, answer


def _begun(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of the closing tag."""
    return next((length for length in range(len(THINK_CLOSE) - 1, 0, -1) if text.endswith(THINK_CLOSE[:length])), 0)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, stripped; None if there is none.

    Braces nest; escaped ones (`\{`) do not count. A box that is not closed (a truncated output) is skipped. A box
    without braces holds one character: `\boxed 5`. Takes time linear in the length of the text.
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
    """Position of the brace that closes the one opened before `start`; None if it is not closed before `end`."""
    depth = 1
    for brace in _BRACE.finditer(text, start, end):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last `####`, stripped; None without a `####`, or if nothing follows it."""
    _, hashes, rest = text.rpartition(HASHES)
    return (rest.partition("\n")[0].strip() or None) if hashes else None
