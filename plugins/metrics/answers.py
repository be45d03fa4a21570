r"""The answer that an output gives, exact numbers, and the comparisons of answers that need no computer algebra."""

from __future__ import annotations

import re
from fractions import Fraction

from attrs import frozen

from modelwright.core.api.answers import BOX, HASHES, after_hashes, last_boxed

LONGEST_LINE = 80  # characters of an output that is taken for the answer alone
LONGEST_ANSWER = 2_000  # characters; no reference of GSM8K or MATH has more than 200

_REWRITES = (
    (re.compile("[\N{MINUS SIGN}\N{EN DASH}]"), "-"),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[!,;:]"), ""),  # thin spaces, as in 10,\!000
    (re.compile(r"\\(?:quad(?![A-Za-z])|\s)|~|\s+"), " "),
)
_MATH = re.compile(r"\$(?P<dollars>[^$]+)\$|\\\((?P<round>.*)\\\)|\\\[(?P<square>.*)\\\]", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_BASE = re.compile(r"(?P<digits>[0-9A-Za-z]+)_\{?(?P<base>[0-9]+)\}?")
_ESCAPED = re.compile(r"\\.", re.DOTALL)


def extract_answer(text: str) -> str | None:
    r"""The answer that a text gives, or None.

    It is the content of the last complete `\boxed{…}`; else what follows the last `####` on its line; else, where the
    whole text is one line of at most 80 characters without an unfinished box, that line.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed or None
    if HASHES in text:
        return after_hashes(text)
    line = text.strip()
    alone = len(line) <= LONGEST_LINE and len(line.splitlines()) == 1 and BOX not in line
    return line if alone else None


def normalise(answer: str) -> str:
    r"""An answer without what only typesets it: math delimiters, LaTeX spacing, `\left`, `\dfrac`, a full stop."""
    answer = answer.strip()
    if len(answer) > 4 and answer.startswith("**") and answer.endswith("**"):  # bold, in Markdown
        answer = answer[2:-2].strip()
    if wrapped := _MATH.fullmatch(answer):
        answer = next(inner for inner in wrapped.groups() if inner is not None)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer.strip().removesuffix(".").rstrip()


def balanced(answer: str) -> bool:
    """Whether every brace is closed and none closes what was not opened; escaped braces do not count."""
    depth = 0
    for character in _ESCAPED.sub("", answer):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def same_answer(reference: str, answer: str) -> bool | None:
    r"""Whether two normalised answers are the same, so far as text and exact numbers can tell; None where they cannot.

    Numbers equal numbers of the same value. Numbers in a base (`664_7`) need the same digits and base; a base that only
    one of them names does not count. Where the reference is words (`\text{even}`, `Evelyn`), the answer must be the
    same words, ignoring case: computer algebra would read them as products of letters.
    """
    if reference == answer:
        return True
    left, right = read_number(reference), read_number(answer)
    if left is not None and right is not None:
        return left.equals(right)
    if _BASE.fullmatch(reference) or _BASE.fullmatch(answer):
        return _same_in_base(reference, answer)
    words = _words(reference)
    if words is not None:
        return words == (_words(answer, certain=True) or "")
    return None


def _same_in_base(reference: str, answer: str) -> bool | None:
    left, right = _BASE.fullmatch(reference), _BASE.fullmatch(answer)
    digits = [match["digits"] if match else text for match, text in ((left, reference), (right, answer))]
    if left and right and left["base"] != right["base"]:
        return False
    if all(re.fullmatch("[0-9]+", text) for text in digits):
        return digits[0].lstrip("0") == digits[1].lstrip("0")
    return None


def _words(text: str, *, certain: bool = False) -> str | None:
    """The words that `text` is, in one case; None where it is or may be mathematics (not checked if `certain`)."""
    wrapped = _TEXT.fullmatch(text)
    inner = (wrapped[1] if wrapped else text).strip()
    if re.fullmatch(r"\([A-Za-z]\)", inner):
        inner = inner[1:-1]  # a choice: (C)
    if not _WORDS.fullmatch(inner) or not (certain or wrapped or _LONG_WORD.search(inner)):
        return None
    return " ".join(inner.casefold().split())


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
# Words after a number that change its value, so they are not units: "5 million" is not 5.
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
    its unit ("5 apples"), unless they change its value ("5 million"). Commas must separate thousands, so `1,2` is
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
