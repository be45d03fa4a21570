r"""A text as the words that it is compared by: without case, LaTeX's layout, and the ways to write one number."""

from __future__ import annotations

import re
import unicodedata

from modelwright.core.api.records import Example

_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
# What only lays out: sizes, spaces, and the commands around text.
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

    `1,250.0` is `1250`, `\dfrac{1}{2}` is `1 / 2`; dollars, braces and spacing commands are nothing.
    """
    text = unicodedata.normalize("NFKC", text)
    text = _FRACTION.sub(r" \1 / \2 ", text)
    text = _TIMES.sub(" * ", _LAYOUT.sub(" ", text)).lower()
    text = _TRAILING_ZEROS.sub(lambda match: match[1].rstrip("."), _THOUSANDS.sub("", text))
    return _WORD.findall(text)


def question(example: Example) -> str:
    """What an example asks: its users' messages, or its text."""
    if example.text is not None:
        return example.text
    return "\n".join(message.content for message in example.messages if message.role == "user")


def whole(example: Example) -> str:
    """All that an example says, thinking included."""
    if example.text is not None:
        return example.text
    said = ((message.thinking, message.content) for message in example.messages)
    return "\n".join(part for parts in said for part in parts if part)
