"""Checks that know no language: how long a text is, whether it repeats itself, whether it was decoded wrongly.

The thresholds of repetition are those of J. Rae et al., "Scaling language models: methods, analysis & insights from
training Gopher" (2021), table A1. They are for pages: a worked sum says "= 2 +" or "square inches" again and again, and
is not broken. So only texts of a hundred words or more are held to them, and runs may cover half as much again.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from attrs import define, field

from modelwright.core.api.records import Example
from modelwright.core.stages.prepare.quality import Removal

FEWEST_WORDS = 100
# The share of lines, and of characters in lines, that were there before.
REPEATED_LINES, REPEATED_LINE_CHARACTERS = 0.30, 0.20
# The share of characters that the most frequent run of so many words covers.
TOP_RUNS = {2: 1.5 * 0.20, 3: 1.5 * 0.18, 4: 1.5 * 0.16}
# The share of characters that no writer writes: U+FFFD, which decoders put for what they cannot read, and controls.
GARBLED = 0.01
_WHITE_SPACE = "\t\n\r\f\v"


@define
class Length:
    """Texts to be learnt that are shorter or longer than wanted, in characters."""

    least: int
    most: int | None
    name: str = field(default="length", init=False)

    def look(self, example: Example) -> Removal | None:
        """See `Check`."""
        size = sum(map(len, learnt(example)))
        if size < self.least:
            return Removal(f"{size:,} characters are learnt, and min_characters is {self.least:,}")
        if self.most is not None and size > self.most:
            return Removal(f"{size:,} characters are learnt, and max_characters is {self.most:,}")
        return None


@define
class Sanity:
    """Texts to be learnt that repeat themselves, or are garbled."""

    name: str = field(default="insane", init=False)

    def look(self, example: Example) -> Removal | None:
        """See `Check`."""
        for text in learnt(example):
            why = _garbled(text) or _repeated_lines(text) or _repeated_words(text)
            if why is not None:
                return Removal(why, {"text": text})
        return None


def learnt(example: Example) -> Sequence[str]:
    """The texts of an example that may be learnt: its plain text, or what the assistant says and thinks."""
    if example.text is not None:
        return [example.text]
    said = [message for message in example.messages if message.role == "assistant" and message.train is not False]
    return [part for message in said for part in (message.thinking, message.content) if part]


def _garbled(text: str) -> str | None:
    wrong = sum(
        character == "\ufffd" or (unicodedata.category(character) == "Cc" and character not in _WHITE_SPACE)
        for character in text
    )
    if wrong <= GARBLED * len(text):
        return None
    return f"{wrong:,} of {len(text):,} characters are controls or stand for what could not be decoded"


def _repeated_lines(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(text.split()) < FEWEST_WORDS:
        return None
    repeated = [(line, count - 1) for line, count in Counter(lines).items() if count > 1]
    number = sum(count for _, count in repeated)
    characters = sum(len(line) * count for line, count in repeated)
    if number <= REPEATED_LINES * len(lines) and characters <= REPEATED_LINE_CHARACTERS * sum(map(len, lines)):
        return None
    return f"{number:,} of {len(lines):,} lines were there before"


def _repeated_words(text: str) -> str | None:
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return None
    size = sum(map(len, words))
    for length, most in TOP_RUNS.items():
        runs = Counter(tuple(words[start : start + length]) for start in range(len(words) - length + 1))
        run, count = max(runs.items(), key=lambda each: (each[1] * sum(map(len, each[0])), each[0]))
        covered = count * sum(map(len, run)) / size
        if count > 1 and covered > most:
            return f"{' '.join(run)!r} stands {count:,} times in {len(words):,} words"
    return None
