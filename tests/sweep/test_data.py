"""The sweep of raw data: whatever a file holds, `prepare` ends with rows, or with one line that says what and where.

Each case goes through the whole command line. What cannot be read is counted and kept with its line and reason; nothing
is lost silently, and nothing half done is left behind.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.core.api.components import FormatSpec
from modelwright.core.cli import main
from modelwright.core.config.schema import SourceConfig
from modelwright.core.plugins import discover
from modelwright.core.stages.prepare.examples import Rejected, read_examples
from modelwright.core.stages.prepare.readers import READABLE
from modelwright.core.stages.prepare.sources import read_source

RUN = """
name = "sweep"
seed = 1
[model.scratch]
vocab_size = 400
tokenizer = "bpe"
[data]
format = "general"
max_rejected = 0.5
[[data.sources]]
path = "{path}"
[train]
max_steps = 1
"""
GOOD = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(9)]
LINES = [json.dumps(row).encode() for row in GOOD]
JSONL = b"\n".join(LINES)
CSV = b"prompt,completion\n" + b"".join(f"say {n},it is {n}\n".encode() for n in range(9))


@pytest.fixture
def prepare(tmp_path, home, capsys):
    """Runs `modelwright prepare` on a source; gives exit code, error lines, report and rejected rows."""

    def run(path, *overrides):
        (tmp_path / "run.toml").write_text(RUN.format(path=path))
        given = [part for override in overrides for part in ("--set", override)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["prepare", str(tmp_path / "run.toml"), *given])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        folder = home / "runs" / "sweep"
        assert not list(folder.glob(".tmp-*")), "what is half done is not left behind"
        assert (folder / "done" / "prepare.json").exists() == (ended.value.code == 0)
        report = json.loads((folder / "prepare" / "report.json").read_text()) if (folder / "prepare").exists() else None
        return ended.value.code, errors, report, _rejected(folder / "prepare")

    return run


def _rejected(folder: Path, name: str = "rejected.jsonl") -> list[tuple[int, str]]:
    file = folder / name
    rows = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []
    assert all(set(row) == {"file", "line", "reason", "row"} for row in rows)
    return [(row["line"], row["reason"]) for row in rows]


def _with(bad: bytes, *, after: int = 3, end: bytes = b"\n") -> bytes:
    return end.join([*LINES[:after], bad, *LINES[after:]])


LONE = rb'{"prompt": "say \ud800", "completion": "it is"}'

# (file name, its bytes, the rows that are rejected): all others are read.
READ = {
    "plain": ("a.jsonl", JSONL, []),
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + JSONL, []),
    "Windows line ends": ("a.jsonl", JSONL.replace(b"\n", b"\r\n"), []),
    "old Macintosh line ends": ("a.jsonl", JSONL.replace(b"\n", b"\r"), []),
    "mixed line ends": ("a.jsonl", b"".join(line + (b"\n", b"\r\n", b"\r")[n % 3] for n, line in enumerate(LINES)), []),
    "blank lines": ("a.jsonl", JSONL.replace(b"\n", b"\n\n \n"), []),
    "U+2028 in a text": ("a.jsonl", JSONL.replace(b"say", "say\u2028".encode()), []),
    "several gzip members": ("a.jsonl.gz", gzip.compress(JSONL + b"\n"), []),
    "CSV from a spreadsheet": ("a.csv", b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n"), []),
    "a name with spaces": ("a [b] c.jsonl", JSONL, []),
    "Latin-1": ("a.jsonl", _with('{"prompt": "café"}'.encode("latin-1")),
        [(4, "not UTF-8: byte 0xe9 at column 16")]),
    "Latin-1 in CSV": ("a.csv", CSV + "café,x\n".encode("latin-1"),
        [(11, "not UTF-8: byte 0xe9 in column 'prompt'")]),
    "a cut-off last line": ("a.jsonl", JSONL[:-5], [(9, "not JSON: Unterminated string starting at at column 35")]),
    "NUL bytes": ("a.jsonl", _with(b"\0" * 100), [(4, "not JSON: Expecting value at column 1")]),
    "a NUL in a text": ("a.jsonl", _with(b'{"prompt": "a\0b", "completion": "c"}'),
        [(4, "not JSON: Invalid control character at at column 14")]),
    "a lone surrogate": ("a.jsonl", _with(LONE), [(4, "its text has a lone surrogate, which is no character")]),
    "a lone surrogate in a name": ("a.jsonl", _with(rb'{"\udfff": 1}'),
        [(4, r"expected the column…; this row has: \udfff")]),
    "a long number": ("a.jsonl", _with(b'{"prompt": ' + b"9" * 5000 + b"}"),
        [(4, "not JSON that can be read: Exceeds the limit (4300 digits) for integer string conversion: …")]),
    "a deep value": ("a.jsonl", _with(b'{"a": ' + b'{"a": ' * 500 + b"1" + b"}" * 501),
        [(4, "too deeply nested: a row may have 100 levels")]),
    "not finite": ("a.jsonl", _with(b'{"prompt": NaN, "completion": Infinity}'),
        [(4, "column 'prompt' must be text, not float")]),
    "no object": ("a.jsonl", _with(b'"text"'), [(4, "not a JSON object but str")]),
    "a ragged CSV row": ("a.csv", CSV + b"only one\n", [(11, "1 fields, and the header has 2")]),
    "an element that is no object": ("a.json", json.dumps([*GOOD, 7]).encode(), [(10, "not an object but int")]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_file_is_read_but_for_the_rows_that_cannot_be(prepare, tmp_path, case):
    """They are in rejected.jsonl, with file, line and reason, and counted."""
    name, content, rejected = READ[case]
    (tmp_path / name).write_bytes(content)
    code, errors, report, found = prepare(name)
    assert (code, errors) == (0, [])
    assert [line for line, _ in found] == [line for line, _ in rejected]
    for (_, reason), (_, expected) in zip(found, rejected, strict=True):
        assert _like(reason, expected), reason
    assert report["read"] == report["examples"] + len(rejected)
    assert report["rejected"] == len(rejected)
    assert report["examples"] >= len(GOOD) - len(rejected)
    assert report["notices"] == []


HEADER = "; the first row must be the names of the columns"
KINDS = f"(can: {READABLE})"
NOBODY = (
    '--input: there is no user "nobody-of-that-name" for "~nobody-of-that-name/a.jsonl" '
    "(a file: ./~nobody-of-that-name/a.jsonl)"
)
ASIDE = "; all are in {home}/runs/sweep/prepare/rejected.jsonl"

# (file name, its bytes, exit code, the line; "…" is anything): nothing is prepared.
REFUSED = {
    "nothing": ("a.jsonl", b"", 1, "{path}: the file has no rows"),
    "blank lines only": ("a.jsonl", b"\n \r\n\t\n", 1, "{path}: the file has no rows"),
    "an empty array": ("a.json", b"[]", 1, "{path}: the file has no rows"),
    "a header only": ("a.csv", b"prompt,completion\n", 1, "{path}: the file has no rows"),
    "UTF-16": ("a.jsonl", JSONL.decode().encode("utf-16"), 1, "{path}: it is UTF-16: save it as UTF-8"),
    "UTF-16 in CSV": ("a.csv", CSV.decode().encode("utf-16"), 1, "{path}: it is UTF-16: save it as UTF-8"),
    "UTF-32": ("a.json", "[]".encode("utf-32"), 1, "{path}: it is UTF-32: save it as UTF-8"),
    "UTF-16 without its mark": ("a.jsonl", JSONL.decode().encode("utf-16-le"), 1,
        ("9 of 9 rows cannot be read (100.0%; [data] max_rejected is 50.0%); the first is a.jsonl:1: not JSON: "
         "Expecting property name enclosed in double quotes at column 2" + ASIDE)),
    "gzip under another name": ("a.jsonl", gzip.compress(JSONL), 1,
        "{path}: it is gzip data: let its name end in .gz"),
    "another name for gzip": ("a.jsonl.gz", JSONL, 1,
        "{path}: cannot be read: Not a gzipped file (b'{{\"')"),
    "a gzip file cut short": ("a.jsonl.gz", gzip.compress(JSONL)[:-20], 1,
        "{path}: cannot be read beyond line 6: Compressed file ended before the end-of-stream marker was reached"),
    "gzip and more": ("a.jsonl.gz", gzip.compress(JSONL + b"\n") + b"and more", 1,
        "{path}: cannot be read beyond line 9: Not a gzipped file (b'an')"),
    "a Zstandard file cut short": ("a.jsonl.zst", pa.compress(JSONL, codec="zstd", asbytes=True)[:-9], 1,
        "{path}: cannot be read: Truncated compressed stream"),
    "Zstandard that is none": ("a.csv.zst", CSV, 1,
        "{path}: cannot be read: ZSTD decompress failed: Unknown frame descriptor"),
    "a Parquet file cut short": ("a.parquet", b"PAR1" + JSONL, 1,
        "{path}: not a Parquet file, or cut short: Parquet magic bytes not found in footer. …"),
    "JSON lines in .json": ("a.json", JSONL, 1,
        ("{path}: not a JSON file: Extra data: line 2 column 1 (char 45) "
         "(one object a line is JSONL: let its name end in .jsonl)")),
    "an object in .json": ("a.json", LINES[0], 1, "{path}: expected a JSON array of objects, found dict"),
    "an open quote": ("a.csv", CSV + b'one,"two\nthree,four\n', 1,
        ("{path}:11: a quoted field that begins here goes on to line 12 and does not end as it should: close its "
         "quote, and double quotes inside it (not CSV: unexpected end of data)")),
    "semicolons": ("a.csv", CSV.replace(b",", b";"), 1,
        "{path}: its columns are separated by semicolons, not by commas: 'prompt;completion'" + HEADER),
    "a column without a name": ("a.csv", b"," + CSV, 1,
        "{path}: column 1 has no name in the header: name it or remove it" + HEADER),
    "a column twice": ("a.csv", b"prompt," + CSV, 1, "{path}: the header names 'prompt' twice" + HEADER),
    "another kind": ("a.xlsx", b"PK", 2, "{path}: cannot read this kind of file " + KINDS),
    "packed Parquet": ("a.parquet.gz", b"", 2, "{path}: cannot read this kind of file " + KINDS),
    "every row rejected": ("a.jsonl", b'{"x": 1}\n' * 7, 1,
        ("7 of 7 rows cannot be read (100.0%; [data] max_rejected is 50.0%); the first is a.jsonl:1: expected the "
         "column…; this row has: x" + ASIDE)),
}  # fmt: skip


def _like(line: str, expected: str) -> bool:
    """Whether a line is as expected, in which "…" stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), line) is not None


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_one_line(prepare, tmp_path, home, case):
    """Which file, how far, and what to do."""
    name, content, expected, line = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    code, errors, _, _ = prepare(name)
    [error] = errors
    assert _like(error, "error: " + line.format(path=tmp_path / name, home=home)), error
    assert code == expected


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs `modelwright prepare --input` on a source; gives exit code, standard output and the lines of the other."""
    monkeypatch.chdir(tmp_path)

    def run(path, *more):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["prepare", "--format", "general", "--input", path, "--output", "out.jsonl", *more])
        output = capsys.readouterr()
        assert not list(tmp_path.glob(".tmp-*")), "what is half done is not left behind"
        assert (tmp_path / "out.jsonl").exists() == (ended.value.code == 0)
        return ended.value.code, output.out, output.err.splitlines()

    return run


@pytest.mark.parametrize("case", READ)
def test_without_a_run_the_same_rows_are_read_and_rejected(convert, tmp_path, case):
    """Into the file beside the output."""
    name, content, rejected = READ[case]
    (tmp_path / name).write_bytes(content)
    code, output, errors = convert(name, "--max-rejected", "0.5", "--json")
    (report,) = json.loads(output)
    assert (code, errors, report["rejected"]) == (0, [], len(rejected))
    found = _rejected(tmp_path, "out.rejected.jsonl")
    assert [line for line, _ in found] == [line for line, _ in rejected]
    for (_, reason), (_, expected) in zip(found, rejected, strict=True):
        assert _like(reason, expected), reason


@pytest.mark.parametrize("case", REFUSED)
def test_without_a_run_the_same_files_are_one_line(convert, tmp_path, case):
    """With the flag and the file of what was rejected."""
    name, content, expected, line = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    line = line.replace("[data] max_rejected", "--max-rejected").replace(ASIDE, "; all are in out.rejected.jsonl")
    code, output, [error] = convert(name, "--max-rejected", "0.5")
    assert (code, output) == (expected, "")
    assert _like(error, "error: " + line.format(path=tmp_path / name)), error


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("", "--input: must not be empty"),
        ("https://x/y.jsonl", '--input: must be a path on disk, not the URL "https://x/y.jsonl"'),
        ("s3://x/y.jsonl", '--input: must be a path on disk, not the URL "s3://x/y.jsonl"'),
        ("gone.jsonl", f"error: HERE/gone.jsonl: no file is there (can read: {READABLE})"),
        ("x" * 300 + ".jsonl", f"error: HERE/{'x' * 300}.jsonl: cannot be read: File name too long"),
        ("*.none", "error: HERE/*.none: no file matches this pattern"),
        ("~nobody-of-that-name/a.jsonl", NOBODY),
        (
            "pipe.jsonl",
            "error: HERE/pipe.jsonl: it is no regular file: a source is read more than once, so save it to one",
        ),
        ("loop.jsonl", "error: HERE/loop.jsonl: cannot be read: Too many levels of symbolic links"),
        ("dang.jsonl", "error: HERE/dang.jsonl: it is a link to a file that is not there"),
    ],
)
def test_without_a_run_an_odd_input_is_one_line(convert, tmp_path, path, line):
    """Before anything starts."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "dang.jsonl").symlink_to("nowhere")
    assert convert(path) == (2, "", [line.replace("HERE", str(tmp_path))])


def test_without_a_run_a_fraction_that_draws_no_row_is_one_line(convert, tmp_path):
    """No empty file of examples is written."""
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    line = "error: nothing to write: 0 rows give no example"
    assert convert("a.jsonl", "--fraction", "0.000001") == (1, "", [line])


def test_places_that_are_no_files_are_refused_before_anything_starts(prepare, tmp_path, home):
    """A folder for a file, a file for a folder, nothing, a FIFO, an endless device."""
    (tmp_path / "data").mkdir()
    (tmp_path / "file.jsonl").write_bytes(JSONL)
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    cases = {
        "data": "{path}: no file in this folder can be read (can: ",
        "file.jsonl/a.jsonl": "{path}: no file is there (can read: ",
        "gone.jsonl": "{path}: no file is there (can read: ",
        "g*.jsonl": "{path}: no file matches this pattern",
        "fifo.jsonl": "{path}: it is no regular file: a source is read more than once, so save it to one",
        "zero.jsonl": "{path}: it is no regular file: a source is read more than once, so save it to one",
        "z" * 300 + ".jsonl": "{path}: cannot be read: File name too long",
    }
    for path, line in cases.items():
        code, [error], _, _ = prepare(path)
        assert code == 2, path
        assert error.startswith("error: " + line.format(path=tmp_path / path))
    assert not home.exists()


def test_one_row_is_enough_to_prepare(prepare, tmp_path):
    """The smallest data there is."""
    (tmp_path / "a.jsonl").write_bytes(LINES[0])
    code, errors, report, _ = prepare("a.jsonl")
    assert (code, errors, report["rows"], report["examples"]) == (0, [], 1, 1)


def test_rows_that_are_all_the_same_are_one_example(prepare, tmp_path):
    """And the others are counted."""
    (tmp_path / "a.jsonl").write_bytes((LINES[0] + b"\n") * 50)
    code, _, report, _ = prepare("a.jsonl")
    assert (code, report["rows"], report["removed"]["duplicate"]) == (0, 1, 49)


def test_rows_that_are_all_too_long_are_an_error_with_their_number(prepare, tmp_path):
    """Not an empty training."""
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    code, [error], report, _ = prepare("a.jsonl", "data.tokens.max_length=2")
    assert code == 1
    assert error == ("error: nothing is left to train on: of the examples 9 are longer than [data.tokens] max_length 2")
    assert report["too_long"] == 9


def test_rows_that_are_all_held_out_are_an_error_with_their_number(prepare, tmp_path):
    """So is this."""
    (tmp_path / "a.jsonl").write_bytes(LINES[0])
    code, [error], _, _ = prepare("a.jsonl", "data.holdout.fraction=0.999999")
    assert code == 1
    assert error == "error: nothing is left to train on: of the examples 1 are held out"


def test_a_folder_of_every_kind_is_one_source(prepare, tmp_path):
    """A changed schema is said once; rows that the format can still read go on."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_bytes(JSONL)
    (data / "b.csv.gz").write_bytes(gzip.compress(CSV.replace(b"say", b"tell")))
    pq.write_table(pa.table({"prompt": ["p1", "p2"], "completion": ["c1", "c2"]}), data / "c.parquet")
    pq.write_table(pa.table({"instruction": ["i1"], "output": ["o1"], "id": [1]}), data / "d.parquet")
    pq.write_table(pa.table({"prompt": ["p3"], "answer": ["o1"]}), data / "e.parquet")
    code, errors, report, rejected = prepare("data")
    assert (code, errors) == (0, [])
    assert report["examples"] == 9 + 9 + 2 + 1
    assert [line for line, _ in rejected] == [1]
    assert report["notices"] == [
        "d.parquet: its columns are not those of c.parquet: without prompt, completion; with instruction, output, id",
        "e.parquet: its columns are not those of d.parquet: without instruction, output, id; with prompt, answer",
    ]


def test_a_person_sees_the_line_the_exit_code_and_the_notice(modelwright, tmp_path, home):
    """In a process, as it is used: an error in one line without a traceback, then the mended file."""
    (tmp_path / "run.toml").write_text(RUN.format(path="*.parquet"))
    pq.write_table(pa.table({"prompt": ["p1"], "completion": ["c1"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    broken = modelwright("prepare", "run.toml")
    assert broken.returncode == 1
    assert broken.stderr.startswith(f"error: {tmp_path}/b.parquet: not a Parquet file, or cut short: ")
    assert broken.stderr.count("\n") == 1
    pq.write_table(pa.table({"prompt": ["p2"], "answer": ["-"], "completion": ["c2"]}), tmp_path / "b.parquet")
    mended = modelwright("prepare", "run.toml")
    assert mended.returncode == 0, mended.stderr
    assert "b.parquet: its columns are not those of a.parquet: with answer" in mended.stderr
    assert json.loads((home / "runs" / "sweep" / "prepare" / "report.json").read_text())["rows"] == 2


def test_a_line_of_50_mb_is_rejected_with_its_size(prepare, tmp_path):
    """And not shown whole."""
    long = b'{"prompt": "' + b"x" * 50_000_000 + b'", "completion": "y"}'
    (tmp_path / "a.jsonl").write_bytes(_with(long))
    code, errors, report, rejected = prepare("a.jsonl")
    assert (code, errors, report["examples"]) == (0, [], 9)
    assert rejected == [(4, "too long: 50,000,033 bytes, and a row may have 16,777,216")]


MASKS = "…): mend the data or the template, or set [data.tokens] allow = […]"
NAMES = st.sampled_from(
    (
        *("question", "answer", "problem", "solution", "messages", "conversations", "role", "content", "prompt"),
        *("completion", "instruction", "input", "output", "thinking", "reasoning", "reasoning_content", "tools"),
    )
) | st.text(max_size=4)
ODD = ("", " ", "a\0b", "\ud800", "\u2028", "{question}", "<|im_end|>", r"\boxed{", "<think>a", "</think>", "####")
WHOLE = ("user", "assistant", "system", "tool", "72", "so #### 72", r"so \boxed{72}", "<think>a</think>b")
TEXTS = st.sampled_from([*ODD, *WHOLE]) | st.text(st.characters(), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}, optional={"thinking": VALUES, "tool_calls": VALUES}),
    max_size=4,
)
TABLE = st.dictionaries(NAMES, TEXTS | VALUES | MESSAGES, max_size=5)


@pytest.mark.parametrize("name", ["math", "reasoning", "general"])
@given(rows=st.lists(TABLE | VALUES, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_becomes_examples_or_a_reason(tmp_path, name, rows):
    """Any JSON values, through each built-in format: nothing else comes out, and no row is lost."""
    path, aside = tmp_path / "a.jsonl", tmp_path / "rejected.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    aside.unlink(missing_ok=True)
    plugins = discover()
    spec = plugins.get(FormatSpec, name)
    rejected = Rejected(aside)
    examples = read_examples(
        read_source(SourceConfig(path=str(path)), seed=1), spec.create(), format_name=name, reject=rejected.add
    )
    lines = {int(example.source.rpartition(":")[2]) for example in examples}
    kept = {json.loads(line)["line"] for line in aside.read_text().split("\n")[:-1]} if rejected.count else set()
    assert lines | kept == set(range(1, len(rows) + 1))
    assert not lines & kept


@given(rows=st.lists(TABLE | VALUES, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_rows_preparing_ends_in_order(prepare, tmp_path, rows):
    """Good rows beside them are prepared; a refusal is a line, never a traceback."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, *rows]))
    code, errors, report, rejected = prepare("a.jsonl", "data.max_rejected=1.0")
    if code:
        (error,) = errors
        assert code == 1
        assert _like(error, f"error: the label masks are not what the data says ({MASKS}"), error
    else:
        assert errors == []
    assert report["examples"] >= len(GOOD)
    assert report["rejected"] == len(rejected)
