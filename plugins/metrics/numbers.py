r"""Numbers as they are written in answers, read exactly: never as floats."""

from __future__ import annotations

import re
from fractions import Fraction

from attrs import frozen

_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_PART = rf"(?:\{{\s*([+-]?\s*{_DECIMAL})\s*\}}|([0-9]))"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)\s*
    (?P<currency>[$€£]?)\s*
    (?:
        (?:(?P<whole>[0-9]+)\s*)?\\frac\s*{_PART}\s*{_PART}
      | (?:(?P<mixed>[0-9]+)\s+)?(?P<above>{_DECIMAL})\s*/\s*(?P<below>{_DECIMAL})
      | (?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[+-]?[0-9]{{1,3}}))?
    )
    (?:\s*(?P<percent>%)|\s+(?P<unit>[A-Za-z]{{3,}}(?:\s[A-Za-z]+)*))?
    """,
    re.VERBOSE,
)
# Words after a number that change its value, so that they are no unit: "5 million" is not 5.
_NO_UNITS = frozenset(
    """
    dozen dozens hundred hundreds thousand thousands million millions billion billions trillion trillions percent
    half halves third thirds quarter quarters and or not plus minus times over divided squared cubed mod sin cos tan log
    exp sqrt factorial less more than of pair pairs score gross couple fifths sixths sevenths eighths ninths tenths
    elevenths twelfths hundredths thousandths millionths
    """.split()  # noqa: SIM905 - forty words in quotes are unreadable
)


@frozen
class Written:
    """A number as an answer states it.

    Attributes:
        value: exactly.
        percent: whether a percent sign follows it; then `value` is the number before the sign.
        unit: the words that follow it, in lower case.
    """

    value: Fraction
    percent: bool = False
    unit: str = ""

    def equals(self, other: Written) -> bool:
        """Whether both state the same amount.

        50 % is what 0.5 says, and what 50 says where the question asks for per cent. A unit that only one of them names
        does not count.
        """
        if self.unit and other.unit and self.unit.removesuffix("s") != other.unit.removesuffix("s"):
            return False
        if self.percent == other.percent:
            return self.value == other.value
        percentage, plain = (self, other) if self.percent else (other, self)
        return plain.value in (percentage.value, percentage.value / 100)


def read_number(text: str) -> Written | None:
    r"""The number that the whole of `text` states, or None where it states none or something else.

    Read are decimals (`1,000`, `-.5`, `72.`, `1.5e3`), fractions (`1/2`, `\frac{1}{2}`, `\frac12`), mixed numbers
    (`1\frac12`, `1 1/2`), with a dollar sign before or a percent sign after them; words after the number are taken for
    its unit ("5 apples"), unless they change its value ("5 million"). Commas must stand between thousands, so `1,2` is
    no number. `text` has no LaTeX spacing and no `\dfrac` (see `answers.normalise`).
    """
    match = _NUMBER.fullmatch(text)
    unit = (match["unit"] or "").lower() if match else ""
    if match is None or _NO_UNITS.intersection(unit.split()):
        return None
    try:
        value = _value(match)
    except ZeroDivisionError:
        return None
    return Written(-value if match["sign"] == "-" else value, percent=match["percent"] is not None, unit=unit)


def _value(match: re.Match[str]) -> Fraction:
    if match["decimal"] is not None:
        return _fraction(match["decimal"]) * Fraction(10) ** int(match["exponent"] or 0)
    if match["above"] is not None:
        return int(match["mixed"] or 0) + _fraction(match["above"]) / _fraction(match["below"])
    above, below = (part for part in match.group(4, 5, 6, 7) if part is not None)
    return int(match["whole"] or 0) + _fraction(above) / _fraction(below)


def _fraction(decimal: str) -> Fraction:
    return Fraction(re.sub(r"[,\s]", "", decimal))
