"""Built-in data: arithmetic word problems, for a first run without downloads.

A problem combines one of a few stories with a name, a thing and two numbers up to 12. All problems are enumerated, and
a hash of its text assigns each to training or test: no problem is in both, for any seed, data set or form of row. Each
sum occurs in training with many names and things, so that a small model can learn it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen

from modelwright.core.api.errors import UsageError

# Part of fingerprints: raise it whenever a row or a split changes.
BUILTIN_VERSION = 1
PREFIX = "builtin:"
SPLITS = ("train", "test")
_TEST_SHARE = 10  # one problem in this many is a test problem

NAMES = ("Ana", "Ben", "Eva", "Leo", "Mia", "Noah", "Tom", "Zoe")
THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "shells")

# Numbers up to 12, and never 1 before a plural. A model of 0.15 million parameters can memorize these 139 sums, as the
# variant without steps must.
_SUMS = tuple((a, b) for a in range(2, 11) for b in range(1, 9))
_DIFFERENCES = tuple((a, b) for a in range(3, 13) for b in range(1, min(a - 1, 9)))
_PRODUCTS = tuple((a, b) for a in range(2, 5) for b in range(2, 7))


@frozen(kw_only=True)
class Story:
    """A story for sums; texts are templates with {name}, {things}, {a}, {b} and {c}, the result.

    Attributes:
        sign: the sign of the operation.
        numbers: the pairs (a, b) to use.
        result: the operation.
        facts: what happens.
        question: what is wanted.
        because: what happens, as the first half of the solution's sentence.
        retold: what happens, in the words of the instructions.
        reasked: the question, in those words.
        sentence: the answer as a sentence.
    """

    sign: str
    numbers: tuple[tuple[int, int], ...]
    result: Callable[[int, int], int]
    facts: str
    question: str
    because: str
    retold: str
    reasked: str
    sentence: str


def _add(a: int, b: int) -> int:
    return a + b


def _subtract(a: int, b: int) -> int:
    return a - b


def _multiply(a: int, b: int) -> int:
    return a * b


STORIES = (
    Story(
        sign="+",
        numbers=_SUMS,
        result=_add,
        facts="{name} has {a} {things} and gets {b} more.",
        question="How many {things} does {name} have now?",
        because="{name} has {a} {things} and gets {b} more",
        retold="There are {a} {things} in the basket of {name}. A friend puts in {b} more.",
        reasked="Count the {things} in the basket.",
        sentence="There are {c} in the basket.",
    ),
    Story(
        sign="+",
        numbers=_SUMS,
        result=_add,
        facts="{name} finds {a} {things} in the morning and {b} in the evening.",
        question="How many {things} does {name} find in all?",
        because="{name} finds {a} {things} and then {b}",
        retold="On Monday {name} paints {a} {things}. On Tuesday {name} paints {b} more.",
        reasked="Count the {things} with paint.",
        sentence="The paint is on {c}.",
    ),
    Story(
        sign="-",
        numbers=_DIFFERENCES,
        result=_subtract,
        facts="{name} has {a} {things} and gives away {b}.",
        question="How many {things} does {name} keep?",
        because="{name} has {a} {things} and gives away {b}",
        retold="There are {a} {things} in the basket of {name}. A friend takes out {b}.",
        reasked="Count the {things} in the basket.",
        sentence="There are {c} in the basket.",
    ),
    Story(
        sign="-",
        numbers=_DIFFERENCES,
        result=_subtract,
        facts="{name} takes {a} {things} to the market and sells {b}.",
        question="How many {things} are left?",
        because="{name} takes {a} {things} and sells {b}",
        retold="The shelf of {name} holds {a} {things}. In the night {b} fall down.",
        reasked="Count the {things} that stay up.",
        sentence="The shelf holds {c}.",
    ),
    Story(
        sign="*",
        numbers=_PRODUCTS,
        result=_multiply,
        facts="{name} has {a} bags with {b} {things} in each.",
        question="How many {things} does {name} have in all?",
        because="{name} has {a} bags of {b} {things}",
        retold="{name} has {a} boxes. Each box holds {b} {things}.",
        reasked="Count the {things} in the boxes.",
        sentence="The boxes hold {c}.",
    ),
    Story(
        sign="*",
        numbers=_PRODUCTS,
        result=_multiply,
        facts="{name} buys {b} {things} on each of {a} days.",
        question="How many {things} does {name} buy in all?",
        because="{name} buys {b} {things} on each of {a} days",
        retold="In the garden of {name} are {a} rows. Each row has {b} {things}.",
        reasked="Count the {things} in the garden.",
        sentence="The garden has {c}.",
    ),
)


@frozen(kw_only=True)
class Problem:
    """A story with its name, thing and numbers."""

    story: Story
    name: str
    things: str
    a: int
    b: int

    @property
    def result(self) -> int:
        """What the numbers make."""
        return self.story.result(self.a, self.b)

    def tell(self, template: str) -> str:
        """A template of the story, filled in."""
        return template.format(name=self.name, things=self.things, a=self.a, b=self.b, c=self.result)

    @property
    def text(self) -> str:
        """The problem itself: the facts and the question; no two problems have the same."""
        return self.tell(f"{self.story.facts} {self.story.question}")


def parse_builtin(path: str) -> tuple[str, str] | None:
    """The name and the split of `builtin:NAME/SPLIT`; None for any other path.

    Raises:
        UsageError: it begins with `builtin:` but there is no such data.
    """
    if not path.startswith(PREFIX):
        return None
    name, _, split = path.removeprefix(PREFIX).partition("/")
    _check(name, split)
    return name, split


def builtin_rows(name: str, split: str, *, seed: int) -> Iterator[dict[str, Any]]:
    """The raw rows of a built-in data set, each problem once, in an order drawn by `seed`.

    The set of rows of a split is the same for every seed. `arithmetic` has GSM8K's columns, question and answer, with
    steps and `#### N`. `instructions` tells the same problems in other words, as a mixture of alpaca, chat and
    prompt/completion rows whose answer is a number or a short sentence with it.

    Args:
        name: "arithmetic" or "instructions".
        split: "train" or "test".
        seed: of the order.

    Raises:
        UsageError: there is no such data set or split; at once, not at the first row.
    """
    _check(name, split)
    return _rows(_DATA_SETS[name], split, seed)


def problems() -> Iterator[Problem]:
    """Every problem there is."""
    for story in STORIES:
        for a, b in story.numbers:
            for name in NAMES:
                for things in THINGS:
                    yield Problem(story=story, name=name, things=things, a=a, b=b)


def split_of(problem: Problem) -> str:
    """The split that a problem belongs to, by a hash of its text."""
    return "test" if _hash(problem) % _TEST_SHARE == 0 else "train"


def _check(name: str, split: str) -> None:
    if name not in _DATA_SETS or split not in SPLITS:
        there_are = ", ".join(f"{PREFIX}{known}/{part}" for known in _DATA_SETS for part in SPLITS)
        raise UsageError(f"unknown built-in data {f'{name}/{split}' if split else name!r}: expected one of {there_are}")


def _hash(problem: Problem) -> int:
    return int.from_bytes(hashlib.sha256(problem.text.encode()).digest()[:8], "big")


def _rows(row: Callable[[Problem], dict[str, Any]], split: str, seed: int) -> Iterator[dict[str, Any]]:
    every = list(problems())
    random.Random(seed).shuffle(every)  # noqa: S311 - an order, not a secret
    for problem in every:
        if split_of(problem) == split:
            yield row(problem)


def _arithmetic(problem: Problem) -> dict[str, Any]:
    steps = problem.tell(problem.story.because + ", so {a} " + problem.story.sign + " {b} = {c}.")
    return {"question": problem.text, "answer": f"{steps}\n#### {problem.result}"}


def _instruction(problem: Problem) -> dict[str, Any]:
    # The hash's upper part, so that the form does not depend on what the split depends on.
    form = _FORMS[_hash(problem) // _TEST_SHARE % len(_FORMS)]
    return form(problem, problem.tell(problem.story.retold), problem.tell(problem.story.reasked))


def _number(problem: Problem, retold: str, reasked: str) -> dict[str, Any]:
    return {
        "instruction": f"{reasked} Reply with a number.",
        "input": retold,
        "output": str(problem.result),
    }


def _sentence(problem: Problem, retold: str, reasked: str) -> dict[str, Any]:
    return {
        "instruction": f"{retold} {reasked} Reply with a sentence.",
        "input": "",
        "output": problem.tell(problem.story.sentence),
    }


def _chat(problem: Problem, retold: str, reasked: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Begin the reply with: the answer is."},
            {"role": "user", "content": f"{retold} {reasked}"},
            {"role": "assistant", "content": f"The answer is {problem.result}."},
        ]
    }


def _completion(problem: Problem, retold: str, reasked: str) -> dict[str, Any]:
    return {
        "prompt": f"Problem: {retold} {reasked} The number is",
        "completion": str(problem.result),
    }


_FORMS = (_number, _sentence, _chat, _completion)
_DATA_SETS: Mapping[str, Callable[[Problem], dict[str, Any]]] = {
    "arithmetic": _arithmetic,
    "instructions": _instruction,
}
