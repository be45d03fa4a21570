"""Decontamination: remove training examples that contain a question of a test set.

Texts are compared by the runs of `RUN` words that they share. A question is found if such runs cover more than half of
its words, anywhere in the example. A question shorter than a run is found if it is the whole question of the example.
Source: N. Lambert et al., "Tülu 3: Pushing Frontiers in Open Language Model Post-Training" (2024), section 3.2, which
compares runs of 8 tokens and removes what shares more than half of a question's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field, frozen

from modelwright.core.api.records import Example
from modelwright.core.stages.prepare.checks import Removal, question, whole, words

RUN = 8
MOST = 0.5

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
    return ((start, tuple(said[start : start + RUN])) for start in range(len(said) - RUN + 1))


@define
class Contamination:
    """Finds questions of test sets in training examples; `add` the questions first."""

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
            if 0 < len(said) < RUN:
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
        return self._removal(example, worst, shares[worst]) if shares[worst] > MOST else None

    def _shares(self, said: Sequence[str]) -> Mapping[int, float]:
        """For each question that shares a run with the words: the fraction of its words that shared runs cover."""
        covered: dict[int, set[int]] = {}
        for run in {run for _, run in _runs(said)} & self._places.keys():
            for number, start in self._places[run]:
                covered.setdefault(number, set()).update(range(start, start + RUN))
        return {number: len(places) / self._questions[number].length for number, places in covered.items()}

    def _removal(self, example: Example, number: int, share: float) -> Removal:
        found = self._questions[number]
        return Removal(
            f"contains {share:.0%} of the words of a question of suite {found.suite}: {found.source}",
            {"suite": found.suite, "other": found.source, "overlap": round(share, 4), "text": whole(example)}
            | {"question": found.text},
        )
