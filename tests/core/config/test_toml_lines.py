"""The line of every key of a TOML document, however it is written."""

from __future__ import annotations

import string

import tomli
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.core.config.toml_lines import lines

DOCUMENT = """\
name = "x" # 1
a.b."c d".'e.f' = 1
inline = { one = 1, two.three = [1, { four = 2 }] }
many = [
  1,
  # a comment
  [2,
   3],
  { five = 5 },
]

[table] # 12
key = 1
[table."quoted key"."\\u00e9"]
key = \"\"\"
[not.a.table]
\"\"\"
[[rows]] # 18
cell = 1
[rows.inner] # 20
cell = 2
[[rows.inner.deep]] # 22
[[rows.inner.deep]]
x = 1
[[rows]] # 25
cell = 3
[rows.inner]
[late.child]
[late] # 29
x = 1
"""


def test_keys_tables_and_entries_have_the_line_where_they_stand():
    """Dotted and quoted keys, inline tables, arrays over several lines, tables in arrays of tables."""
    found = lines(DOCUMENT)
    expected = {
        (): 1,
        ("name",): 1,
        ("a",): 2,
        ("a", "b", "c d", "e.f"): 2,
        ("inline", "one"): 3,
        ("inline", "two", "three", 1, "four"): 3,
        ("many",): 4,
        ("many", 0): 5,
        ("many", 1): 7,
        ("many", 1, 1): 8,
        ("many", 2, "five"): 9,
        ("table",): 12,
        ("table", "key"): 13,
        ("table", "quoted key"): 14,
        ("table", "quoted key", "é", "key"): 15,
        ("rows",): 18,
        ("rows", 0): 18,
        ("rows", 0, "cell"): 19,
        ("rows", 0, "inner"): 20,
        ("rows", 0, "inner", "cell"): 21,
        ("rows", 0, "inner", "deep", 0): 22,
        ("rows", 0, "inner", "deep", 1, "x"): 24,
        ("rows", 1): 25,
        ("rows", 1, "inner"): 27,
        ("late", "child"): 28,
        ("late",): 29,
        ("late", "x"): 30,
    }
    assert {path: found.get(path) for path in expected} == expected


def test_windows_line_ends_count_as_one():
    """A file from another system has the same lines."""
    assert lines(DOCUMENT.replace("\n", "\r\n")) == lines(DOCUMENT)


def paths_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_of(item, (*path, key))


keys = st.text(string.ascii_letters + string.digits + "_-. \"'\\é#=[]\n", max_size=6)
scalars = st.one_of(st.integers(-99, 99), st.booleans(), st.text(max_size=8), st.dates())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, values, max_size=4), st.booleans())
def test_every_path_of_any_document_has_a_line_that_names_it(document, multiline):
    """What tomli reads, tree-sitter finds, and the last key of each path is on its line."""
    text = tomli_w.dumps(document, multiline_strings=multiline)
    found = lines(text)
    text_lines = text.split("\n")
    for path in paths_of(tomli.loads(text)):
        assert path in found, (path, text)
        line = text_lines[found[path] - 1]
        if path and isinstance(path[-1], str) and path[-1].isalnum() and path[-1].isascii():
            assert path[-1] in line


def test_the_newer_toml_that_tomli_takes_has_lines_too():
    """Escapes, times without seconds and inline tables over several lines that the grammar does not know."""
    found = lines('a = "\\e\\x41"\nat = 07:32\n[t]\nb = { x = 1,\n y = 2,\n}\nc = 3\n')
    assert (found["a",], found["at",], found["t",], found["t", "b", "y"], found["t", "c"]) == (1, 2, 3, 5, 7)


def test_broken_text_does_no_harm():
    """Lines are asked for on the error path, where nothing may fail."""
    for content in ("", "\udcff", "[", "= 1", '"\\q" = 1', "[[a]]\n[a", "a = {b = }", "\0"):
        assert lines(content)[()] == 1
