"""Quality checks: each looks at one example and returns a reason to remove it.

Length, sanity, a wrong answer, or a question of a test set.

Every removed example has a line in `removed.jsonl`, with what it was compared with.

The thresholds of repetition are those of J. Rae et al., "Scaling language models: methods, analysis & insights from
training Gopher" (2021), table A1. They are made for web pages, but a worked sum repeats "= 2 +" or "square inches"
without being broken. So they apply only to texts of a hundred words or more, and repeated runs of words may cover 1.5
times as much.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import define, field, frozen

from modelwright.core.api.components import Metric
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.records import Example, Output


@frozen
class Removal:
    """Why an example is removed.

    Attributes:
        reason: a sentence for people.
        facts: what it was compared with: texts, sources, similarities; JSON values.
    """

    reason: str
    facts: Mapping[str, Any] = field(factory=dict)


class Check(Protocol):
    """One reason to remove examples.

    Attributes:
        name: the name of the reason, for counts.
    """

    name: str

    def check(self, example: Example) -> Removal | None:
        """Why to remove `example`; None keeps it. Called in the order of the data, with what earlier checks kept."""
        ...


def first_removal(checks: Iterable[Check], example: Example) -> tuple[str, Removal] | None:
    """The name of the first check that removes the example, and its reason; None if all keep it."""
    for check in checks:
        removal = check.check(example)
        if removal is not None:
            return check.name, removal
    return None


_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
# Layout only: sizes, spaces, and the commands around text.
_LAYOUT = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|text|textbf|textit|mathrm|mathbf|mathit|operatorname|quad|qquad)\b"
    r"|\\[,;:!()\[\] ]|[${}]"
)
_TIMES = re.compile(r"\\(?:cdot|times)\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRAILING_ZEROS = re.compile(r"(\d+\.\d*?)0+\b")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[-+*/=^<>%]")


def words(text: str) -> list[str]:
    r"""The words, numbers and operators of a text, in order.

    `1,250.0` is `1250`, `\dfrac{1}{2}` is `1 / 2`; dollars, braces and spacing commands are dropped.
    """
    text = unicodedata.normalize("NFKC", text)
    text = _FRACTION.sub(r" \1 / \2 ", text)
    text = _TIMES.sub(" * ", _LAYOUT.sub(" ", text)).lower()
    text = _TRAILING_ZEROS.sub(lambda match: match[1].rstrip("."), _THOUSANDS.sub("", text))
    return _WORD.findall(text)


def question(example: Example) -> str:
    """The question of an example: its user messages, or its plain text."""
    if example.text is not None:
        return example.text
    return "\n".join(message.content for message in example.messages if message.role == "user")


def whole(example: Example) -> str:
    """All text of an example, thinking included."""
    if example.text is not None:
        return example.text
    said = ((message.thinking, message.content) for message in example.messages)
    return "\n".join(part for parts in said for part in parts if part)


FEWEST_WORDS = 100
# The fraction of lines, and of characters in lines, that repeat an earlier line.
REPEATED_LINES, REPEATED_LINE_CHARACTERS = 0.30, 0.20
# By number of words: the fraction of characters that the most frequent run of that length may cover.
TOP_RUNS = {2: 1.5 * 0.20, 3: 1.5 * 0.18, 4: 1.5 * 0.16}
# The allowed fraction of U+FFFD, which decoders write for bytes that they cannot decode, and of control characters.
GARBLED = 0.01
_WHITE_SPACE = "\t\n\r\f\v"


@define
class Length:
    """Removes examples whose trained text is too short or too long, in characters."""

    least: int
    most: int | None
    name: str = field(default="length", init=False)

    def check(self, example: Example) -> Removal | None:
        """See `Check`."""
        size = sum(map(len, trained_texts(example)))
        if size < self.least:
            return Removal(f"the trained text has {size:,} characters; min_characters is {self.least:,}")
        if self.most is not None and size > self.most:
            return Removal(f"the trained text has {size:,} characters; max_characters is {self.most:,}")
        return None


@define
class Sanity:
    """Removes examples whose trained text repeats itself or is garbled."""

    name: str = field(default="insane", init=False)

    def check(self, example: Example) -> Removal | None:
        """See `Check`."""
        for text in trained_texts(example):
            why = _garbled(text) or _repeated_lines(text) or _repeated_words(text)
            if why is not None:
                return Removal(why, {"text": text})
        return None


def trained_texts(example: Example) -> Sequence[str]:
    """The texts of an example that may be trained on: its plain text, or what the assistant says and thinks."""
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
    return f"{wrong:,} of {len(text):,} characters are control or replacement characters (U+FFFD)"


def _repeated_lines(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(text.split()) < FEWEST_WORDS:
        return None
    repeated = [(line, count - 1) for line, count in Counter(lines).items() if count > 1]
    number = sum(count for _, count in repeated)
    characters = sum(len(line) * count for line, count in repeated)
    if number <= REPEATED_LINES * len(lines) and characters <= REPEATED_LINE_CHARACTERS * sum(map(len, lines)):
        return None
    return f"{number:,} of {len(lines):,} lines repeat an earlier line"


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
            return f"{' '.join(run)!r} occurs {count:,} times in {len(words):,} words"
    return None


@define
class AnswerCheck:
    """Removes examples whose last assistant message does not give the reference answer, by the metric of the run.

    Examples without a reference answer are kept.

    Attributes:
        metric: the metric.
        metric_name: its name, for messages.
    """

    metric: Metric
    metric_name: str
    name: str = "unverified"

    def check(self, example: Example) -> Removal | None:
        """See `Check`.

        Raises:
            ModelwrightError: the metric failed.
        """
        said = [message for message in example.messages if message.role == "assistant"]
        if example.answer is None or not said:
            return None
        output = Output(text=said[-1].content, thinking=said[-1].thinking)
        try:
            score = self.metric.score(example, [output])
        except ModelwrightError:
            raise
        except Exception as error:
            raise ModelwrightError(
                f"metric {self.metric_name!r} failed on {example.source}: {type(error).__name__}: {error}"
            ) from error
        if score.verdict == "correct":
            return None
        return Removal(
            f"{self.metric_name}: {score.reason or score.verdict}", {"answer": example.answer, "text": output.text}
        )


# Words in a run that a test question and an example may share, and the share of a question that such runs may cover.
TEST_RUN, TEST_SHARE = 8, 0.5

Gram = tuple[str, ...]


@frozen
class Question:
    """A question of a test set.

    Attributes:
        suite: the set's name.
        source: where it is from, as `file:line`.
        text: the question itself.
        length: its number of words.
    """

    suite: str
    source: str
    text: str
    length: int


def _runs(said: Sequence[str]) -> Iterable[tuple[int, Gram]]:
    return ((start, tuple(said[start : start + TEST_RUN])) for start in range(len(said) - TEST_RUN + 1))


@define
class Contamination:
    """Finds questions of test sets in training examples; `add` the questions first.

    Texts are compared by the runs of `TEST_RUN` words that they share. A question is found if such runs cover more than
    half of its words, anywhere in the example. A question shorter than a run is found if it is the whole question of
    the example. Source: N. Lambert et al., "Tülu 3: Pushing Frontiers in Open Language Model Post-Training" (2024),
    section 3.2, which compares runs of 8 tokens and removes what shares more than half of a question's tokens.
    """

    name: str = "contaminated"
    _questions: list[Question] = field(factory=list, init=False)
    _places: dict[Gram, list[tuple[int, int]]] = field(factory=dict, init=False)
    _short: dict[Gram, int] = field(factory=dict, init=False)

    def add(self, suite: str, examples: Iterable[Example]) -> None:
        """Add a test set's questions."""
        for example in examples:
            text = question(example)
            said = words(text)
            number = len(self._questions)
            self._questions.append(Question(suite, example.source, text, len(said)))
            for start, run in _runs(said):
                self._places.setdefault(run, []).append((number, start))
            if 0 < len(said) < TEST_RUN:
                self._short.setdefault(tuple(said), number)

    def check(self, example: Example) -> Removal | None:
        """See `Check`."""
        found = self._short.get(tuple(words(question(example))))
        if found is not None:
            return self._removal(example, found, 1.0)
        shares = self._shares(words(whole(example)))
        if not shares:
            return None
        worst = max(shares, key=lambda number: (shares[number], -number))
        return self._removal(example, worst, shares[worst]) if shares[worst] > TEST_SHARE else None

    def _shares(self, said: Sequence[str]) -> Mapping[int, float]:
        """For each question that shares a run with the words: the fraction of its words that shared runs cover."""
        covered: dict[int, set[int]] = {}
        for run in {run for _, run in _runs(said)} & self._places.keys():
            for number, start in self._places[run]:
                covered.setdefault(number, set()).update(range(start, start + TEST_RUN))
        return {number: len(places) / self._questions[number].length for number, places in covered.items()}

    def _removal(self, example: Example, number: int, share: float) -> Removal:
        found = self._questions[number]
        return Removal(
            f"contains {share:.0%} of the words of a question of suite {found.suite}: {found.source}",
            {"suite": found.suite, "other": found.source, "overlap": round(share, 4), "text": whole(example)}
            | {"question": found.text},
        )
