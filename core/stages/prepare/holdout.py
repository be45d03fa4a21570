"""Which examples are held out from training: whole prompts, so that no held-out question is trained with other words.

The prompt of an example is its first user turn, in any case and spacing; of plain text, the text. So all answers to a
question, and a conversation with its continuations, are on one side. What differs only in later turns is counted.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
from attrs import define, frozen

from modelwright.core.plugins import Plugins
from modelwright.core.stages.prepare.pool import Tick
from modelwright.core.stages.prepare.rendering import EXAMPLES_BETWEEN, ExamplesFile, repeats


@define
class Prompts:
    """The user turns of a file's examples, without those that the weight of their source leaves out.

    Attributes:
        numbers: of the examples, from 0.
        counts: the number of turns of each.
        turns: a number for each turn, the same for the same text; one example after the other.
    """

    numbers: array.array[int]
    counts: array.array[int]
    turns: array.array[int]


@frozen
class Drawn:
    """What is held out.

    Attributes:
        held: for each file, the numbers of its held-out examples.
        wanted: the number of examples that the fraction asks for.
        examples: the number of held-out examples.
        prompts: the number of their prompts.
        shared: how many of them have a user turn that a training example has, too.
        total: the number of all examples.
        of: the number of all prompts.
    """

    held: Sequence[tuple[int, ...]]
    wanted: float
    examples: int
    prompts: int
    shared: int
    total: int
    of: int

    def notices(self) -> Iterator[str]:
        """What a person should know."""
        if self.examples > self.wanted or self.examples < self.wanted / 2:
            yield (
                f"{self.examples} of {self.total} examples held out, where [data.holdout] fraction asks for "
                f"{self.wanted:.4g}: prompts are held out whole, and at least one (here {self.prompts} of {self.of})"
            )
        if self.shared:
            yield (
                f"{self.shared} of {self.examples} held-out examples have a user turn that occurs in training examples "
                "as well, not as the first turn of both: the held-out loss may be too low"
            )


@frozen
class FindPrompts:
    """Numbers the user turns of a file of examples, for `draw`.

    Attributes:
        seed: of the run; it decides which prompts come first.
    """

    seed: int

    @contextlib.contextmanager
    def opened(self, plugins: Plugins | None) -> Iterator[Callable[[ExamplesFile, Tick], Prompts]]:  # noqa: ARG002 - see `Job`
        """See `Job`."""
        yield self._find

    def _find(self, given: ExamplesFile, tick: Tick) -> Prompts:
        found = Prompts(array.array("Q"), array.array("Q"), array.array("Q"))
        with given.path.open("rb") as file:
            for number, line in enumerate(file):
                if number % EXAMPLES_BETWEEN == 0:
                    tick()
                row = orjson.loads(line)
                if not repeats(row["id"], given.weight, self.seed):
                    continue
                turns = [self._number(text) for text in _user_turns(row)]
                found.numbers.append(number)
                found.counts.append(len(turns))
                found.turns.extend(turns)
        return found

    def _number(self, text: str) -> int:
        plain = " ".join(text.casefold().split())
        return int.from_bytes(hashlib.sha256(f"{self.seed}:holdout:{plain}".encode()).digest()[:8], "big")


def _user_turns(row: dict[str, Any]) -> list[str]:
    """The user turns of an example; at least one text."""
    if "text" in row:
        return [row["text"]]
    return [each["content"] for each in row["messages"] if each["role"] == "user"] or [row["id"]]


def draw(found: Sequence[Prompts], fraction: float) -> Drawn:
    """Draw about `fraction` of the examples, by prompts in the order of their numbers; at least one prompt.

    A prompt with more examples than the fraction asks for is trained, unless all have more.

    Args:
        found: the prompts of each file; not all of them without examples.
        fraction: more than 0, less than 1.
    """
    import numpy as np

    counts = np.concatenate([np.frombuffer(each.counts, np.uint64) for each in found]).astype(np.int64)
    turns = np.concatenate([np.frombuffer(each.turns, np.uint64) for each in found])
    _, group, sizes = np.unique(turns[np.cumsum(counts) - counts], return_inverse=True, return_counts=True)
    wanted = round(fraction * len(counts), 6)
    fits = sizes <= max(wanted, sizes.min())
    drawn = fits & (np.cumsum(np.where(fits, sizes, 0)) <= max(wanted, sizes.min()))
    held = drawn[group]
    of_held = np.repeat(held, counts)
    common = np.isin(turns, turns[~of_held]) & of_held
    per_file = np.split(held, np.cumsum([len(each.numbers) for each in found])[:-1])
    return Drawn(
        held=[
            tuple(np.frombuffer(each.numbers, np.uint64)[mine].tolist())
            for each, mine in zip(found, per_file, strict=True)
        ],
        wanted=wanted,
        examples=int(held.sum()),
        prompts=int(drawn.sum()),
        shared=len(np.unique(np.repeat(np.arange(len(counts)), counts)[common])),
        total=len(counts),
        of=len(sizes),
    )
