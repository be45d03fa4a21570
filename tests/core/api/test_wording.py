"""Pieces of messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.wording import printable


def test_what_cannot_be_printed_is_escaped_as_in_toml():
    """Four digits, or eight beyond the first plane; the characters to keep stay."""
    assert printable("a\x1b[2J\u202e\U000e0001\n", keep="\n") == "a\\u001b[2J\\u202e\\U000e0001\n"


@given(st.text())
def test_the_result_is_one_line_that_prints(text):
    """Of any text; what prints already does not change."""
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
