from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.plugins.metrics.answers import balanced, extract_answer, normalise, read_number, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"#### 5 and then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("Steps: 1.\n#### 5\nWrong.\n#### 6 \nmore", "6"),
        ("72", "72"),
        (" 72 \n", "72"),
        ("It costs 3.\nSo 72", None),
        ("x" * 81, None),
        ("", None),
        ("#### \n5", None),
        (r"\boxed{}", None),
        (r"\boxed{3", None),
        ("Cut off.\n\\boxed{3", None),
    ],
)
def test_the_answer_is_boxed_or_after_hashes_or_alone(text, answer):
    """The last box goes first, then the last ####, then a whole output of one short line."""
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1000", 1000),
        ("1,000", 1000),
        ("1,234,567.50", Fraction("1234567.5")),
        ("72.", 72),
        ("-.5", Fraction(-1, 2)),
        ("+3", 3),
        ("$5", 5),
        ("-$5.00", -5),
        ("1/2", Fraction(1, 2)),
        ("1 1/2", Fraction(3, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\frac12", Fraction(1, 2)),
        (r"-\frac{3}4", Fraction(-3, 4)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("1.5e3", 1500),
        ("2E-2", Fraction(1, 50)),
        ("18 dollars", 18),
        ("50%", 50),
    ],
)
def test_numbers_are_read_exactly(text, value):
    """Decimals, fractions and mixed numbers, with currency, percent sign or unit."""
    assert read_number(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "1,2",
            "12,34",
            "1,0000",
            "1 2",
            "1/0",
            r"\frac{1}{0}",
            "5x",
            "5 x",
            "5 million",
            "5 sin x",
            "5 or 6",
        ),
        *("..", "1e9999999", "\u0661\u0662", "1_000", "nan", "inf", "0x10", "--5"),
    ],
)
def test_text_without_a_number_is_not_read_as_one(text):
    """Lists, products, scales, divisions by nothing and other scripts' digits are not numbers here."""
    assert read_number(text) is None


@given(st.integers(-(10**30), 10**30), st.integers(0, 12))
def test_every_way_to_write_a_number_is_equal(units, places):
    """A decimal equals itself with thousands' commas, zeros after it, as a fraction, and in thin LaTeX spaces."""
    value = Fraction(units, 10**places)
    digits = f"{abs(units):0{places + 1}d}"
    whole, decimals = (digits[:-places], digits[-places:]) if places else (digits, "")
    sign = "-" if units < 0 else ""
    grouped = f"{int(whole):,}"
    written = [
        f"{sign}{whole}.{decimals}",
        f"{sign}{grouped}.{decimals}00",
        f"${sign}{grouped.replace(',', '{,}')}.{decimals}$",
        f"{sign}{grouped.replace(',', ',' + chr(92) + '!')}.{decimals}",
        f"{value.numerator}/{value.denominator}",
        rf"{sign}\dfrac{{{abs(value.numerator)}}}{{{value.denominator}}}",
    ]
    for text in written:
        assert read_number(normalise(text)).value == value, text
        assert same_answer(normalise(written[0]), normalise(text)) is True


@given(st.integers(1, 10**20), st.integers(17, 40))
def test_numbers_that_are_equal_as_floats_are_distinguished(units, places):
    """A difference in the twentieth digit is a difference."""
    near = f"{units}.{'0' * places}1"
    assert float(near) == float(units)
    assert same_answer(str(units), near) is False


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("0.5", "1/2", True),
        (r"\frac13", "0.333333", False),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("0.5", "50%", True),
        ("50", "0.5", False),
        ("50%", "5000%", False),
        ("5 apples", "5", True),
        ("5 apples", "5 pears", False),
        ("664_7", "664_{7}", True),
        ("664_7", "664", True),
        ("664_7", "664_8", False),
        ("664_7", "665_7", False),
        (r"\text{even}", "Even", True),
        (r"\text{even}", "neve", False),
        ("Evelyn", r"\text{Evelyn}", True),
        ("Evelyn", "nylevE", False),
        (r"\text{(C)}", "C", True),
        (r"\text{(C)}", "D", False),
        (r"\text{even}", "x+1", False),
        (r"x^2", r"x^{2}", None),
        ("(1,2)", "(1, 2)", None),
        ("5", "x", None),
    ],
)
def test_text_and_numbers_are_settled_without_algebra(reference, answer, same):
    """Exact numbers, percentages, bases and words have an answer here; the rest is left to Math-Verify."""
    assert same_answer(normalise(reference), normalise(answer)) is same


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (r"$x$", "x"),
        (r"\(x\)", "x"),
        (r"\[ x \]", "x"),
        (r"\left(1,\!2\right)", "(1,2)"),
        (r"\leftarrow", r"\leftarrow"),
        ("x.", "x"),
        ("\N{MINUS SIGN}3", "-3"),
        ("$5 and $6$", "$5 and $6$"),
    ],
)
def test_typesetting_does_not_count(written, plain):
    """Delimiters, spacing and a full stop are taken off; what means something stays."""
    assert normalise(written) == plain


@given(st.text(max_size=60))
def test_any_text_is_itself(text):
    """Any answer equals itself, and reading it never fails."""
    answer = normalise(text)
    assert same_answer(answer, answer) is True
    assert read_number(answer) is None or read_number(answer).equals(read_number(answer))
    assert balanced(text) in (True, False)


@pytest.mark.parametrize(("text", "whole"), [("{}", True), (r"\{", True), ("}{", False), ("{", False), (r"\\}", False)])
def test_balance_counts_unescaped_braces(text, whole):
    """Only braces that LaTeX groups with count."""
    assert balanced(text) is whole
