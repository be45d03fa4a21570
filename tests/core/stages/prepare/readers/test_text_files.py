"""Rows of text files: lines and their numbers, quoted fields, packing, and bytes that are not text."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ids import shown

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.config.data import SourceConfig
from modelwright.core.stages.prepare.readers import csv_files, json_files, text
from modelwright.core.stages.prepare.sources import read_source


def _rows(path, **options):
    return list(read_source(SourceConfig(path=str(path), **options), seed=1))


@pytest.fixture
def read(tmp_path):
    """Reads the rows of a file with these bytes, as (line, value or reason)."""

    def rows(name, content):
        (tmp_path / name).write_bytes(content)
        return [(row.line, row.reason if row.value is None else row.value) for row in _rows(tmp_path / name)]

    return rows


class InPieces:
    """A file that gives its bytes in pieces of chosen sizes."""

    def __init__(self, content, sizes):
        self.file, self.sizes = io.BytesIO(content), iter(sizes)

    def read(self, size, /):
        return self.file.read(min(size, next(self.sizes, size)))


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"\xe2\x80\xa8"])), st.lists(st.integers(1, 4)))
def test_lines_are_the_same_however_the_bytes_arrive(parts, sizes):
    """Also where a chunk ends between the two halves of a line end."""
    content = b"".join(parts)
    found = list(text.read_lines(InPieces(content, sizes)))
    assert [line.text for line in found] == content.splitlines()
    assert [line.number for line in found] == list(range(1, len(found) + 1))


def test_a_line_that_is_too_long_keeps_its_size_and_its_beginning_only(wording, monkeypatch):
    """And the lines around it."""
    monkeypatch.setattr(text, "MAX_LINE", 10_000)
    long = b"x" * 5000 + b"y" * 15_001
    found = list(text.read_lines(InPieces(b"a\n" + long + b"\nb\n", [7] * 3000)))
    assert [(line.size, line.too_long is not None) for line in found] == [(1, False), (20_001, True), (1, False)]
    assert found[1].text == long[:8000]
    wording(found[1].too_long)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_of_every_system_give_the_same_lines(read, end):
    """Blank lines count, and the last line needs no end."""
    assert read("a.jsonl", end.join([b'{"a": 1}', b"", b'{"a": 2}'])) == [(1, {"a": 1}), (3, {"a": 2})]
    assert read("a.csv", end.join([b"a,b", b"1,2", b"", b"3,4"])) == [
        (2, {"a": "1", "b": "2"}),
        (4, {"a": "3", "b": "4"}),
    ]


def test_other_line_ends_of_unicode_are_text(read):
    """U+2028 and U+0085 may occur in JSON strings and CSV fields."""
    text = "one\u2028two\u2029three\u0085four\x0bfive"
    packed = json.dumps({"a": text.replace("\x0b", "")}, ensure_ascii=False).encode()
    assert read("a.jsonl", packed) == [(1, {"a": text.replace("\x0b", "")})]
    assert read("a.csv", f"a,b\n{text},2\n".encode()) == [(2, {"a": text, "b": "2"})]


ROWS = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(3)]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_every_kind_of_text_file_is_read_in_every_packing(tmp_path, kind, packing):
    """In upper and lower case of the suffix; a file of several parts is one."""
    written = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        ".json": json.dumps(ROWS),
        ".csv": "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS),
    }[kind].encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": lambda part: pa.compress(part, codec="zstd", asbytes=True)}[
        packing
    ]
    path = tmp_path / f"a{kind.upper()}{packing}"
    path.write_bytes(b"".join(pack(part) for part in (written[:20], written[20:])))
    assert [row.value for row in _rows(path)] == ROWS


@pytest.mark.parametrize(
    "line",
    [b"1", b"1,2,3", b"1,2,", b'"1"x,2', b"1,\xe9t\xe9", "1,é".encode("utf-16-le")],
    ids=["one field", "three fields", "an empty third field", "text after a quote", "Latin-1", "UTF-16"],
)
def test_a_csv_row_that_cannot_be_read_is_kept_with_its_line_and_reason(wording, read, line):
    """The rows around it are read."""
    before, after = (2, {"a": "1", "b": "x\ny"}), (5, {"a": "5", "b": "6"})
    first, (number, reason), last = read("a.csv", b'a,b\n1,"x\ny"\n' + line + b"\n5,6\n")
    assert (first, number, last) == (before, 4, after)
    wording(reason)


def test_what_stood_in_an_unreadable_csv_row_is_kept(tmp_path):
    """As text, for rejected.jsonl."""
    (tmp_path / "a.csv").write_bytes(b'a,b\n"x\ny"\n\xff,1\n' + b"1,2,3" * 1000)
    assert [row.text[:5] for row in _rows(tmp_path / "a.csv")] == ['"x\ny"', "\ufffd,1", "1,2,3"]
    assert max(len(row.text) for row in _rows(tmp_path / "a.csv")) == 2000


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=6)


@given(st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(CELL, min_size=width, max_size=width), max_size=5)))
def test_what_pythons_csv_module_writes_is_read_back(tmp_path_factory, records):
    """Quotes, commas, line ends, NUL bytes and all."""
    if not records:
        return
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    header = [f"c{number}" for number in range(len(records[0]))]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *records])
    assert [list(row.value.values()) for row in _rows(path)] == records


@pytest.mark.parametrize(
    "content",
    [
        b",a\n0,1\n",
        b"a, ,b\n",
        b"a,b,a\n",
        b"a;b\n1;2\n",
        b"a\tb\n1\t2\n",
        b"caf\xe9,b\n1,2\n",
        b'"a"x,b\n1,2\n',
        b'a,b\n1,2\n3,"open\n5,6\n7,8\n',
        b'a,b\n3,"open\n5,"six"\n7,8\n',
        b"a,b\n",
        b"\n\n\n",
    ],
    ids=shown,
)
def test_a_csv_file_whose_rows_cannot_be_separated_is_refused(wording, read, content):
    """A guess would teach the model the wrong columns; an open quote may swallow any number of rows."""
    with pytest.raises(ModelwrightError) as caught:
        read("a.csv", content)
    wording(caught.value)


def test_a_long_csv_field_is_read_and_one_that_is_too_long_is_not(wording, read, monkeypatch):
    """The csv module's own limit, 128 KiB, is too small for long solutions."""
    long = b"x" * 200_000
    assert read("a.csv", b"a,b\n1," + long) == [(2, {"a": "1", "b": long.decode()})]
    monkeypatch.setattr(csv_files, "MAX_LINE", 100_000)
    [(line, reason), row] = read("a.csv", b"a,b\n1," + long + b"\n3,4\n")
    assert (line, row) == (2, (3, {"a": "3", "b": "4"}))
    wording(reason)
    with pytest.raises(ModelwrightError) as caught:
        read("a.csv", b'a,b\n1,"' + b"x\n" * 100_000)
    wording(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.csv.gz", "a.jsonl.zst"])
@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}'.encode("utf-16"),
        b"\xfe\xff" + '{"a": 1}'.encode("utf-16-be"),
        '{"a": 1}'.encode("utf-32"),
        gzip.compress(b'{"a": 1}'),
        pa.compress(b'{"a": 1}', codec="zstd", asbytes=True),
        b"PAR1....PAR1",
    ],
    ids=["UTF-16", "UTF-16, big end first", "UTF-32", "gzip", "Zstandard", "Parquet"],
)
def test_a_file_of_other_bytes_is_refused_with_what_to_do(wording, tmp_path, name, content):
    """One line for the file, instead of one for each of its lines."""
    packed = {"gz": gzip.compress, "zst": lambda part: pa.compress(part, codec="zstd", asbytes=True)}
    (tmp_path / name).write_bytes(packed.get(name.rpartition(".")[2], bytes)(content))
    with pytest.raises(ModelwrightError) as caught:
        _rows(tmp_path / name)
    wording(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", [lambda packed: packed[: len(packed) // 2], lambda packed: packed + b"and more"])
def test_a_packed_file_that_is_cut_short_or_goes_on_says_how_far_it_was_read(tmp_path, name, damage):
    """The rows before it were read; what follows is not known, so the run stops."""
    text = b"a\n" + b"".join(b"%d\n" % (n * 7919) for n in range(200_000))
    if "jsonl" in name:
        text = b"".join(b'{"a": %d}\n' % (n * 7919) for n in range(200_000))
    packed = gzip.compress(text) if name.endswith("gz") else pa.compress(text, codec="zstd", asbytes=True)
    (tmp_path / name).write_bytes(damage(packed))
    rows = read_source(SourceConfig(path=str(tmp_path / name)), seed=1)
    read = []
    with pytest.raises(ModelwrightError) as caught:
        read.extend(rows)  # what came before the error stays in the list
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert f" after line {read[-1].line}: " in str(caught.value)
    assert all(row.value for row in read)
    assert len(read) > 50_000


def test_a_json_array_is_bounded_because_it_is_read_whole(wording, read, monkeypatch):
    """The message says what has no bound."""
    monkeypatch.setattr(json_files, "MAX_JSON", 1000)
    with pytest.raises(ModelwrightError) as caught:
        read("a.json", json.dumps([{"a": "x" * 2000}]).encode())
    wording(caught.value)


@pytest.mark.parametrize(
    "content", [b'{"a": 1}\n{"a": 2}\n', b'{"data": []}', b'[{"a": "\xe9"}]', b"[" * 100_000, b"", b"[]"], ids=shown
)
def test_a_json_file_that_is_not_an_array_is_refused(wording, read, content):
    """With what it is instead, where that can be seen."""
    with pytest.raises(ModelwrightError) as caught:
        read("a.json", content)
    wording(caught.value)


def test_elements_of_a_json_array_are_rows_of_their_own(wording, read):
    """One that is not an object is kept aside with its number."""
    deep = b'{"a": ' + b"[" * 120 + b"]" * 120 + b"}"
    first, *rejected, last = read("a.json", b'\xef\xbb\xbf[{"a": 1}, 2, null, ' + deep + b', {"a": 3}]')
    assert (first, last) == ((1, {"a": 1}), (5, {"a": 3}))
    assert [number for number, _ in rejected] == [2, 3, 4]
    for _, reason in rejected:
        wording(reason)


def test_a_row_that_nests_too_deep_for_others_is_kept_aside(wording, read):
    """It could be read here and still end the program that writes it again."""
    deep = b'{"a": ' + b"[" * 120 + b"]" * 120 + b"}"
    wide = b'{"a": [' + b",".join([b"[]"] * 500) + b"]}"
    rows = read("a.jsonl", deep + b"\n" + wide)
    assert rows[0][0] == 1
    wording(rows[0][1])
    assert len(rows[1][1]["a"]) == 500
