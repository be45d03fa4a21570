r"""Where a solution states its answer: the last `\boxed{…}` of LaTeX, or what follows the last `####` (GSM8K).

Formats read reference answers with these functions and metrics read a model's, so that both mean the same place.
"""

from __future__ import annotations

import re

HASHES = "####"
BOX = r"\boxed"
_OPENING = re.compile(r"\s*(\{|[^\s{}\\A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, stripped; None where there is none.

    Braces nest, and escaped ones (`\{`) do not count. A box that is not closed (an output cut short) is passed over. A
    box without braces holds one character: `\boxed 5`. Time grows with the text's length only, whatever it holds.
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
    """What stands after the last `####` on its line, stripped; None where there is no `####` or nothing after it."""
    _, hashes, rest = text.rpartition(HASHES)
    return (rest.partition("\n")[0].strip() or None) if hashes else None
