"""Sources: every kind of file that is promised, and one clear line for every file that is not what it says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ids import shown

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.config.data import SourceConfig
from modelwright.core.stages.prepare.sources import read_source, share, source_digests

DAMAGED = gzip.compress(b'{"a": 1}\n')[:12] + b"\xff" * 40
CUT = gzip.compress(b'{"a": 1}\n' * 9)[:20]
ROWS = [{"question": f"q{n}", "answer": str(n)} for n in range(20)]


def _values(path, **options):
    return [row.value for row in read_source(SourceConfig(path=str(path), **options), seed=1)]


@pytest.fixture
def jsonl(tmp_path, rows_file):
    return rows_file(tmp_path / "a.jsonl", ROWS)


def test_jsonl_json_gzip_globs_and_folders_give_the_same_rows(tmp_path, jsonl):
    """However it is packed."""
    text = jsonl.read_bytes()
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "b.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    for path in (jsonl, tmp_path / "gz", tmp_path / "gz" / "*.gz", tmp_path / "c.json", f"{tmp_path}/g?/b.*"):
        assert _values(path) == ROWS, path


def test_rows_know_their_file_and_line(tmp_path):
    """Empty lines count as lines."""
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    rows = list(read_source(SourceConfig(path=str(tmp_path / "a.jsonl")), seed=0))
    assert [(row.file, row.line) for row in rows] == [("a.jsonl", 1), ("a.jsonl", 3)]


@pytest.mark.parametrize(
    "line",
    [b'{"a": 1', b"[1, 2]", b'{"a": "\xff"}', b"\x00\x00", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000],
    ids=shown,
)
def test_a_line_that_cannot_be_read_is_kept_with_its_reason(wording, tmp_path, line):
    """The rows around it are read."""
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    rows = list(read_source(SourceConfig(path=str(tmp_path / "a.jsonl")), seed=0))
    assert [row.value for row in rows] == [{"a": 1}, None, {"a": 2}]
    assert rows[1].line == 2
    wording(rows[1].reason)


def test_windows_line_ends_and_a_byte_order_mark_are_no_trouble(tmp_path):
    """Files come from everywhere."""
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert _values(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("make", "path", "error"),
    [
        (Path.exists, "no.jsonl", UsageError),
        (Path.exists, "no*.jsonl", UsageError),
        (lambda f: (f / "d").mkdir(), "d", UsageError),
        (lambda f: (f / "a.xls").touch(), "a.xls", UsageError),
        (lambda f: (f / "a.jsonl").touch(), "a.jsonl", ModelwrightError),
        (lambda f: (f / "a.json").write_text("{}"), "a.json", ModelwrightError),
        (lambda f: (f / "a.json").write_text("[{"), "a.json", ModelwrightError),
        (lambda f: (f / "a.jsonl.gz").write_bytes(CUT), "a.jsonl.gz", ModelwrightError),
        (lambda f: (f / "a.jsonl.gz").write_bytes(DAMAGED), "a.jsonl.gz", ModelwrightError),
        (lambda f: (f / "a.jsonl.gz").write_bytes(b"plain"), "a.jsonl.gz", ModelwrightError),
    ],
    ids=[
        *("no file", "no match", "an empty folder", "another type", "nothing", "an object", "half of JSON"),
        *("half of gzip", "damaged gzip", "text named gzip"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_named(wording, tmp_path, make, path, error):
    """One line: which file, and what is wrong with it."""
    make(tmp_path)
    with pytest.raises(error) as caught:
        _values(tmp_path / path)
    assert path.removesuffix("*.jsonl") in str(caught.value)
    wording(caught.value)


def test_limit_cuts_and_fraction_draws_the_same_rows_each_time(jsonl):
    """The seed decides."""
    assert _values(jsonl, limit=3) == ROWS[:3]
    half = _values(jsonl, fraction=0.5)
    assert half == _values(jsonl, fraction=0.5)
    assert 0 < len(half) < len(ROWS)
    assert all(row in ROWS for row in half)


def test_the_digest_is_of_the_content_not_of_the_place(tmp_path, jsonl):
    """A moved file is the same; one changed byte is not."""
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "a.jsonl"
    moved.write_bytes(jsonl.read_bytes())
    assert source_digests(SourceConfig(path=str(jsonl)), 0) == source_digests(SourceConfig(path=str(moved)), 0)
    moved.write_bytes(moved.read_bytes().replace(b"q7", b"q8"))
    assert source_digests(SourceConfig(path=str(jsonl)), 0) != source_digests(SourceConfig(path=str(moved)), 0)


def test_files_of_one_name_and_their_order_are_distinguished(tmp_path, rows_file):
    """Row order is part of what is trained."""
    for name, rows in (("x", ROWS[:5]), ("y", ROWS[5:])):
        (tmp_path / name).mkdir()
        rows_file(tmp_path / name / "a.jsonl", rows)
    both = SourceConfig(path=f"{tmp_path}/?/a.jsonl")
    digests = source_digests(both, 0)
    assert [name for name, _ in digests] == ["a.jsonl", "a.jsonl"]
    (tmp_path / "x").rename(tmp_path / "z")
    assert source_digests(both, 0) == digests[::-1]


def test_a_built_in_source_needs_no_file():
    """The quickstart downloads nothing."""
    rows = _values("builtin:arithmetic/train", limit=5)
    assert len(rows) == 5
    assert rows == _values("builtin:arithmetic/train", limit=5)


@given(st.text())
def test_a_share_is_at_least_0_and_below_1(text):
    """It is compared with fractions."""
    assert 0 <= share(text) < 1
