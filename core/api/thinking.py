"""What a model thought and what it answers: the two are parted by `<think>…</think>`, in streams and in whole texts.

Formats read training data with these functions, evaluation and serving read a model's output by them, so
that all mean the same.
"""

from __future__ import annotations

from enum import Enum

OPEN = "<think>"
CLOSE = "</think>"


class _Place(Enum):
    """How far a text has come: before its first word, in its thinking, just behind it, in its answer."""

    START = "start"
    THINKING = "thinking"
    GAP = "gap"
    ANSWER = "answer"


class ThinkingSplitter:
    """Parts a text that comes in pieces; splitting it piece by piece gives what splitting it at once gives.

    Thinking stands first, after nothing but white space, and ends with the first `</think>`; tags anywhere else are
    ordinary text. Of the thinking the white space at both ends is left out, of the answer that follows it the white
    space before it. A text without thinking is the answer, unchanged. Thinking that is never closed is all thinking:
    the answer did not come.

    Args:
        inside: whether the prompt has opened the thinking already (`Renderer.opens_thinking`); a model that opens it
            once more is forgiven.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._inside = inside
        self._place = _Place.START
        # What cannot be given yet: white space that may be an end's, and what may be the beginning of a tag.
        self._held = ""
        self._thought = False

    def feed(self, text: str) -> tuple[str, str]:
        """What is new and certain of the thinking and of the answer."""
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
        """The rest of the thinking and of the answer; the text has ended."""
        held, self._held = self._held, ""
        if self._place is _Place.THINKING:
            return held.rstrip(), ""
        if self._place is _Place.START and self._inside:
            return held.strip(), ""
        return "", held

    def _start(self) -> None:
        """Leave the start as soon as it is clear what stands there."""
        words = self._held.lstrip()
        if not words or (len(words) < len(OPEN) and OPEN.startswith(words)):
            return
        if words.startswith(OPEN):
            self._place, self._held = _Place.THINKING, words.removeprefix(OPEN)
        else:
            self._place = _Place.THINKING if self._inside else _Place.ANSWER

    def _think(self) -> str:
        """What is certain of the thinking: it ends with a word, and no beginning of a tag is in it."""
        if not self._thought:
            self._held = self._held.lstrip()
        thought, closed, rest = self._held.partition(CLOSE)
        if closed:
            self._place, self._held = _Place.GAP, rest
            return thought.rstrip()
        certain = thought[: len(thought) - _begun(thought)].rstrip()
        self._held = thought[len(certain) :]
        self._thought = self._thought or bool(certain)
        return certain


def split_thinking(text: str, *, inside: bool = False) -> tuple[str | None, str]:
    """The thinking of a whole text, None where there is none or it is empty, and the answer; see `ThinkingSplitter`."""
    splitter = ThinkingSplitter(inside=inside)
    thinking, answer = (piece + rest for piece, rest in zip(splitter.feed(text), splitter.finish(), strict=True))
    return thinking or None, answer


def _begun(text: str) -> int:
    """How many characters at the end of `text` may be the beginning of the closing tag."""
    return next((length for length in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:length])), 0)
