"""Markdown of what models write: nothing that they write becomes markup."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.stages.evaluate.report import block, cut, plain, table

TEXTS = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("`|\n\\#*_<>[]~\r\x1b\u202e")), max_size=80)


@given(TEXTS)
def test_a_block_ends_where_its_text_ends(text):
    """Even if the text itself has fences."""
    lines = block(text).split("\n")
    fence = lines[0].removesuffix("text")
    assert set(fence) == {"`"}
    assert [number for number, line in enumerate(lines) if line.strip() == fence] == [len(lines) - 1]
    assert all(char.isprintable() or char in "\n\t" for char in block(text))


@given(TEXTS)
def test_a_cell_stays_a_cell(text):
    """One line, and no bar that is not escaped."""
    cell = plain(text)
    assert "\n" not in cell
    assert "\r" not in cell
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`<>*\[\]#]", cell)


@given(TEXTS, st.integers(1, 20), st.integers(1, 3))
def test_what_is_cut_says_how_much(text, characters, lines):
    """And what is short enough stays as it is."""
    short = cut(text, characters=characters, lines=lines)
    kept = short.partition(" … (")[0] if short != text else text
    if short == text:
        return
    assert text.startswith(kept[:characters])
    assert short.endswith("characters more)")


def test_names_stay_readable():
    """An underscore in a word is not markup."""
    assert plain("math_accuracy") == "math_accuracy"
    assert plain("_all_ *x* [a](b) `c`") == r"\_all\_ \*x\* \[a\](b) \`c\`"
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| :-- | --: |\n| x | 1 |"
