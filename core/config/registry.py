"""`[registry]`: where a version is stored, and the condition of its promotion.

A condition is a text such as `gsm8k.math_accuracy >= 0.6 and gsm8k.exact_match > 0.5`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from attrs import field, frozen, validators

from modelwright.core.api.errors import UsageError
from modelwright.core.api.registry import ALIAS_NAME, MetricTable
from modelwright.core.config.errors import Invalid
from modelwright.core.config.metrics import LABEL, metric_label
from modelwright.core.config.paths import RegistryUrl, named

_NAME = r"[a-z][a-z0-9_-]*"
_MEASURE = re.compile(rf"({_NAME})\.({LABEL.pattern})")
_OPERATOR = re.compile(r"[<>=!]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?(?![\w.])")
_AND = re.compile(r"and(?![\w.-])")
_SPACE = re.compile(r"\s*")
_FOUND = re.compile(r"[<>=!]+|[^\s<>=!]+")

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
}


class ClauseResult(NamedTuple):
    """The result of one clause: its text, the measured value (None if there is none), and whether it holds."""

    clause: str
    measured: float | None
    holds: bool


@frozen(kw_only=True)
class Clause:
    """One comparison, `SUITE.METRIC OPERATOR NUMBER`; `str()` gives it back in plain form."""

    suite: str
    metric: str
    operator: str
    threshold: float

    @property
    def measure(self) -> str:
        """`SUITE.METRIC`."""
        return f"{self.suite}.{self.metric}"

    def __str__(self) -> str:
        return f"{self.measure} {self.operator} {self.threshold!r}"

    def check(self, metrics: MetricTable) -> ClauseResult:
        """Compare the measured value; a suite or metric that is missing does not hold."""
        figure = metrics.get(self.suite, {}).get(self.metric)
        measured = None if figure is None else figure.value
        holds = measured is not None and _COMPARISONS[self.operator](measured, self.threshold)
        return ClauseResult(str(self), measured, holds)


@frozen(kw_only=True)
class Condition:
    """Comparisons that must all hold."""

    clauses: tuple[Clause, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.clauses))

    def check(self, metrics: MetricTable) -> list[ClauseResult]:
        """Every clause's text, measured value and whether it holds; the condition holds if all do."""
        return [clause.check(metrics) for clause in self.clauses]


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        UsageError: the text is not a condition; the message names the character, what was expected and what was found.
    """
    scanner = _Scanner(text)
    clauses: list[Clause] = []
    while True:
        measure = scanner.take(_MEASURE, "SUITE.METRIC, such as gsm8k.math_accuracy")
        try:
            metric = metric_label(measure[2])
        except Invalid as error:
            raise UsageError(f"condition {text!r}: {error}") from None
        comparison = scanner.take(_OPERATOR, _OPERATORS, among=_COMPARISONS)
        number = scanner.take(_NUMBER, "a number")[0]
        threshold = float(number)
        if math.isinf(threshold):
            raise UsageError(f"condition {text!r}: {number} is too large for a number")
        clauses.append(Clause(suite=measure[1], metric=metric, operator=comparison[0], threshold=threshold))
        if scanner.at_end():
            return Condition(clauses=tuple(clauses))
        scanner.take(_AND, "'and' or the end")


_OPERATORS = f"one of {', '.join(_COMPARISONS)}"


class _Scanner:
    """Takes one piece of a text after the other, over the spaces between them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def _skip_spaces(self) -> None:
        spaces = _SPACE.match(self._text, self._position)
        assert spaces is not None
        self._position = spaces.end()

    def at_end(self) -> bool:
        """Whether nothing but spaces is left."""
        self._skip_spaces()
        return self._position == len(self._text)

    def take(
        self, pattern: re.Pattern[str], expected: str, *, among: Mapping[str, object] | None = None
    ) -> re.Match[str]:
        """The match of `pattern` here, which must be one of `among` if that is given."""
        self._skip_spaces()
        match = pattern.match(self._text, self._position)
        if match is None or (among is not None and match[0] not in among):
            self._fail(expected)
        self._position = match.end()
        return match

    def _fail(self, expected: str) -> NoReturn:
        found = _FOUND.match(self._text, self._position)
        raise UsageError(
            f"condition {self._text!r}: at character {self._position + 1} expected {expected}, "
            f"found {repr(found[0]) if found else 'the end'}"
        )


# The tables


def _not_blank(_instance: Any, _attribute: Any, value: str) -> None:
    if not value.strip():
        raise ValueError("must not be empty")


@frozen(kw_only=True)
class PromoteConfig:
    """`[registry.promote]`: An alias that moves to the new version, if the version is good enough.

    Attributes:
        alias: Name of the alias, without the `@`.
        condition: Condition on the run's figures: `SUITE.METRIC >= NUMBER` (or `>`, `<`, `<=`, `==`), several joined by
            `and`, such as `"gsm8k.math_accuracy >= 0.6"`. By default the alias always moves.
    """

    alias: str = field(
        validator=named(ALIAS_NAME, "a lower-case letter or digit, then any of a-z 0-9 . _ -, not all of them digits")
    )
    condition: str | None = field(default=None, metadata={"key": "if"}, validator=validators.optional(_not_blank))

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the condition's form, as (key, message)."""
        if self.condition is not None:
            try:
                parse_condition(self.condition)
            except UsageError as error:
                yield "if", str(error)


@frozen(kw_only=True)
class RegistryConfig:
    """`[registry]`: Where the new version is stored, its tags, and the alias that moves to it.

    Attributes:
        url: URL of the registry. Default: the one in `$MODELWRIGHT_HOME`. The path in `sqlite:///models.db` (three
            slashes) is relative to the file; that in `sqlite:////var/models.db` is absolute.
        tags: Tags of the new version, such as `{ project = "tutor" }`. They are free text for your own use.
        promote: Alias to move to the new version. By default no alias moves.
    """

    url: RegistryUrl | None = None
    tags: Mapping[str, str] = field(factory=dict)
    promote: PromoteConfig | None = None


@frozen(kw_only=True)
class EvalRegistryConfig:
    """`[registry]`: Where the models are stored.

    Attributes:
        url: URL of the registry, as in a run file.
    """

    url: RegistryUrl | None = None
