r"""Worked solutions: their steps and their final answer (`#### 72`, `\boxed{72}`)."""

from __future__ import annotations

import re

from attrs import frozen

from modelwright.core.api.answers import BOX, HASHES, last_boxed

# GSM8K's calculator annotations, as in "48/2 = <<48/2=24>>24".
_CALCULATION = re.compile(r"<<[^<>\n]*>>")


@frozen
class Solution:
    """A parsed worked solution.

    Attributes:
        steps: the text that leads to the answer.
        answer: the final statement: the bare answer for GSM8K, the box for MATH.
        reference: the answer itself.
    """

    steps: str
    answer: str
    reference: str


def without_calculations(solution: str) -> str:
    """A solution without GSM8K's calculator annotations."""
    return _CALCULATION.sub("", solution) if "<<" in solution else solution


def read_solution(text: str) -> Solution | None:
    r"""The steps and the answer of a text that ends with `#### ANSWER`, or else states one in `\boxed{…}`.

    For GSM8K, the steps are the text before `####`; for MATH, the whole solution. None if the text is neither, or has
    an answer without steps.
    """
    stated = hashes_answer(text)
    if stated is not None:
        steps = without_calculations(text.rpartition(HASHES)[0]).strip()
        return Solution(steps, stated, stated) if steps else None
    boxed = last_boxed(text)
    if not boxed or not re.search(r"\w", text.replace(BOX, "").replace(boxed, "")):
        return None
    return Solution(text.strip(), rf"\boxed{{{boxed}}}", boxed)


def final_answer(text: str) -> str | None:
    r"""The final answer of a text: after `####` on its last line, or else in its last `\boxed{…}`; else None."""
    return hashes_answer(text) or last_boxed(text) or None


def hashes_answer(text: str) -> str | None:
    """The text after `####` on the last line; None without it: hashes further up are a Markdown heading."""
    _, hashes, answer = text.rstrip().rpartition(HASHES)
    return (answer.strip() or None) if hashes and "\n" not in answer else None
