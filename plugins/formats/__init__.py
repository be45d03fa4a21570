"""The built-in formats: `general`, `math` and `reasoning`."""

from __future__ import annotations

from collections.abc import Iterable

from modelwright.core.api import FormatSpec, hookimpl
from modelwright.plugins.formats.general import GeneralOptions
from modelwright.plugins.formats.math import MathOptions
from modelwright.plugins.formats.reasoning import ReasoningOptions


@hookimpl
def modelwright_formats() -> Iterable[FormatSpec]:
    """The formats of this package."""
    yield FormatSpec(
        name="general",
        summary="chat messages with tools, ShareGPT, alpaca, pairs such as prompt/completion, plain text",
        options=GeneralOptions,
        factory="modelwright.plugins.formats.general:GeneralFormat",
    )
    yield FormatSpec(
        name="math",
        summary=r"GSM8K (question, answer with ####), MATH (problem, solution with \boxed{}), multiple choice",
        options=MathOptions,
        factory="modelwright.plugins.formats.math:MathFormat",
    )
    yield FormatSpec(
        name="reasoning",
        summary="thinking before the answer: in columns, in <think>…</think>, in messages, or as worked solutions",
        options=ReasoningOptions,
        factory="modelwright.plugins.formats.reasoning:ReasoningFormat",
    )
