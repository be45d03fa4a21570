"""The built-in formats: `math` and `general`."""

from __future__ import annotations

from collections.abc import Iterable

from modelwright.core.api import FormatSpec, hookimpl
from modelwright.plugins.formats.general import GeneralOptions
from modelwright.plugins.formats.math import MathOptions


@hookimpl
def modelwright_formats() -> Iterable[FormatSpec]:
    """The formats of this package."""
    yield FormatSpec(
        name="general",
        summary="alpaca, chat messages, prompt/completion",
        options=GeneralOptions,
        factory="modelwright.plugins.formats.general:GeneralFormat",
    )
    yield FormatSpec(
        name="math",
        summary=r"GSM8K (question, answer with ####), MATH (problem, solution with \boxed{})",
        options=MathOptions,
        factory="modelwright.plugins.formats.math:MathFormat",
    )
