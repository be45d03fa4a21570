"""The sweep of raw data: with any file, `prepare` ends with rows, or with one line that says what and where.

Each case goes through the whole command line. What cannot be read is counted and kept with its line and reason; nothing
is lost silently, and nothing half done is left behind.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import tiny_run

from examples import examples
from modelwright.core.api.components import FormatSpec
from modelwright.core.cli import main
from modelwright.core.config.data import SourceConfig
from modelwright.core.plugins import discover
from modelwright.core.stages.prepare.examples import Rejected, read_examples
from modelwright.core.stages.prepare.readers import READABLE
from modelwright.core.stages.prepare.sources import read_source

RUN = """
name = "sweep"
model.scratch = {{ vocab_size = 400, tokenizer = "bpe" }}
[data]
format = "general"
max_rejected = 0.5
sources = [{{ path = "{path}" }}]
"""
GOOD = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(9)]
LINES = [json.dumps(row).encode() for row in GOOD]
JSONL = b"\n".join(LINES)
CSV = b"prompt,completion\n" + b"".join(f"say {n},it is {n}\n".encode() for n in range(9))


@pytest.fixture
def prepare(tmp_path, home, capsys):
    """Runs `modelwright prepare` on a source; gives exit code, error lines, report and rejected rows."""

    def run(path, *overrides):
        (tmp_path / "run.toml").write_text(tiny_run(RUN.format(path=path)))
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

# (file name, its bytes, the lines of the rows that are rejected): all others are read.
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
    "Latin-1": ("a.jsonl", _with('{"prompt": "café"}'.encode("latin-1")), [4]),
    "Latin-1 in CSV": ("a.csv", CSV + "café,x\n".encode("latin-1"), [11]),
    "a cut-off last line": ("a.jsonl", JSONL[:-5], [9]),
    "NUL bytes": ("a.jsonl", _with(b"\0" * 100), [4]),
    "a NUL in a text": ("a.jsonl", _with(b'{"prompt": "a\0b", "completion": "c"}'), [4]),
    "a lone surrogate": ("a.jsonl", _with(LONE), [4]),
    "a lone surrogate in a name": ("a.jsonl", _with(rb'{"\udfff": 1}'), [4]),
    "a long number": ("a.jsonl", _with(b'{"prompt": ' + b"9" * 5000 + b"}"), [4]),
    "a deep value": ("a.jsonl", _with(b'{"a": ' + b'{"a": ' * 500 + b"1" + b"}" * 501), [4]),
    "not finite": ("a.jsonl", _with(b'{"prompt": NaN, "completion": Infinity}'), [4]),
    "no object": ("a.jsonl", _with(b'"text"'), [4]),
    "a ragged CSV row": ("a.csv", CSV + b"only one\n", [11]),
    "an element that is no object": ("a.json", json.dumps([*GOOD, 7]).encode(), [10]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_file_is_read_but_for_the_rows_that_cannot_be(wording, prepare, tmp_path, case):
    """They are in rejected.jsonl, with file, line and reason, and counted."""
    name, content, rejected = READ[case]
    (tmp_path / name).write_bytes(content)
    code, errors, report, found = prepare(name)
    assert (code, errors) == (0, [])
    assert [line for line, _ in found] == rejected
    for _, reason in found:
        wording(reason)
    assert report["read"] == report["examples"] + len(rejected)
    assert report["rejected"] == len(rejected)
    assert report["examples"] >= len(GOOD) - len(rejected)
    assert report["notices"] == []


# (file name, its bytes, exit code): nothing is prepared.
REFUSED = {
    "nothing": ("a.jsonl", b"", 1),
    "blank lines only": ("a.jsonl", b"\n \r\n\t\n", 1),
    "an empty array": ("a.json", b"[]", 1),
    "a header only": ("a.csv", b"prompt,completion\n", 1),
    "UTF-16": ("a.jsonl", JSONL.decode().encode("utf-16"), 1),
    "UTF-16 in CSV": ("a.csv", CSV.decode().encode("utf-16"), 1),
    "UTF-32": ("a.json", "[]".encode("utf-32"), 1),
    "UTF-16 without its mark": ("a.jsonl", JSONL.decode().encode("utf-16-le"), 1),
    "gzip under another name": ("a.jsonl", gzip.compress(JSONL), 1),
    "another name for gzip": ("a.jsonl.gz", JSONL, 1),
    "a gzip file cut short": ("a.jsonl.gz", gzip.compress(JSONL)[:-20], 1),
    "gzip and more": ("a.jsonl.gz", gzip.compress(JSONL + b"\n") + b"and more", 1),
    "a Zstandard file cut short": ("a.jsonl.zst", pa.compress(JSONL, codec="zstd", asbytes=True)[:-9], 1),
    "Zstandard that is none": ("a.csv.zst", CSV, 1),
    "a Parquet file cut short": ("a.parquet", b"PAR1" + JSONL, 1),
    "JSON lines in .json": ("a.json", JSONL, 1),
    "an object in .json": ("a.json", LINES[0], 1),
    "an open quote": ("a.csv", CSV + b'one,"two\nthree,four\n', 1),
    "semicolons": ("a.csv", CSV.replace(b",", b";"), 1),
    "a column without a name": ("a.csv", b"," + CSV, 1),
    "a column twice": ("a.csv", b"prompt," + CSV, 1),
    "another kind": ("a.xlsx", b"PK", 2),
    "packed Parquet": ("a.parquet.gz", b"", 2),
    "every row rejected": ("a.jsonl", b'{"x": 1}\n' * 7, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_one_line(wording, prepare, tmp_path, case):
    """Which file, how far, and what to do."""
    name, content, expected = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    code, [error], _, _ = prepare(name)
    assert code == expected
    assert name in error
    wording(error, readable=READABLE)


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
def test_without_a_run_the_same_rows_are_read_and_rejected(wording, convert, tmp_path, case):
    """Into the file beside the output."""
    name, content, rejected = READ[case]
    (tmp_path / name).write_bytes(content)
    code, output, errors = convert(name, "--max-rejected", "0.5", "--json")
    (report,) = json.loads(output)
    assert (code, errors, report["rejected"]) == (0, [], len(rejected))
    found = _rejected(tmp_path, "out.rejected.jsonl")
    assert [line for line, _ in found] == rejected
    for _, reason in found:
        wording(reason)


@pytest.mark.parametrize("case", REFUSED)
def test_without_a_run_the_same_files_are_one_line(wording, convert, tmp_path, case):
    """With the flag and the file of what was rejected."""
    name, content, expected = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    code, output, [error] = convert(name, "--max-rejected", "0.5")
    assert (code, output) == (expected, "")
    assert name in error
    wording(error, readable=READABLE)


@pytest.mark.parametrize(
    "path",
    [
        *("", "https://x/y.jsonl", "s3://x/y.jsonl", "gone.jsonl", "x" * 300 + ".jsonl", "*.none"),
        *("~nobody-of-that-name/a.jsonl", "pipe.jsonl", "loop.jsonl", "dang.jsonl"),
    ],
    ids=lambda path: path[:40],
)
def test_without_a_run_an_odd_input_is_one_line(wording, convert, tmp_path, path):
    """Before anything starts."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "dang.jsonl").symlink_to("nowhere")
    code, output, [error] = convert(path)
    assert (code, output) == (2, "")
    wording(error, readable=READABLE)


def test_without_a_run_a_fraction_that_draws_no_row_is_one_line(wording, convert, tmp_path):
    """No empty file of examples is written."""
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    code, output, [error] = convert("a.jsonl", "--fraction", "0.000001")
    assert (code, output) == (1, "")
    wording(error)


def test_places_that_are_no_files_are_refused_before_anything_starts(wording, prepare, tmp_path, home):
    """A folder for a file, a file for a folder, nothing, a FIFO, an endless device."""
    (tmp_path / "data").mkdir()
    (tmp_path / "file.jsonl").write_bytes(JSONL)
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for path in ("data", "file.jsonl/a.jsonl", "gone.jsonl", "g*.jsonl", "fifo.jsonl", "zero.jsonl"):
        code, [error], _, _ = prepare(path)
        assert code == 2, path
        wording(error, readable=READABLE)
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


def test_rows_that_are_all_too_long_are_an_error_with_their_number(wording, prepare, tmp_path):
    """Not an empty training."""
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    code, [error], report, _ = prepare("a.jsonl", "data.tokens.max_length=2")
    assert code == 1
    wording(error)
    assert report["too_long"] == 9


def test_rows_that_are_all_held_out_are_an_error_with_their_number(wording, prepare, tmp_path):
    """So is this."""
    (tmp_path / "a.jsonl").write_bytes(LINES[0])
    code, [error], _, _ = prepare("a.jsonl", "data.holdout.fraction=0.999999")
    assert code == 1
    wording(error)


def test_a_folder_of_every_kind_is_one_source(wording, prepare, tmp_path):
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
    assert [notice.partition(":")[0] for notice in report["notices"]] == ["d.parquet", "e.parquet"]
    for notice in report["notices"]:
        wording(notice)


def test_a_person_sees_the_line_the_exit_code_and_the_notice(modelwright, tmp_path, home):
    """In a process, as it is used: an error in one line without a traceback, then the fixed file."""
    (tmp_path / "run.toml").write_text(tiny_run(RUN.format(path="*.parquet")))
    pq.write_table(pa.table({"prompt": ["p1"], "completion": ["c1"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    broken = modelwright("prepare", "run.toml")
    assert broken.returncode == 1
    assert broken.stderr.startswith(f"error: {tmp_path}/b.parquet: ")
    assert broken.stderr.count("\n") == 1
    pq.write_table(pa.table({"prompt": ["p2"], "answer": ["-"], "completion": ["c2"]}), tmp_path / "b.parquet")
    fixed = modelwright("prepare", "run.toml")
    assert fixed.returncode == 0, fixed.stderr
    assert any(line.startswith("b.parquet: ") or " b.parquet: " in line for line in fixed.stderr.splitlines())
    assert json.loads((home / "runs" / "sweep" / "prepare" / "report.json").read_text())["rows"] == 2


def test_a_line_of_50_mb_is_rejected_with_its_size(wording, prepare, tmp_path):
    """And not shown whole."""
    long = b'{"prompt": "' + b"x" * 50_000_000 + b'", "completion": "y"}'
    (tmp_path / "a.jsonl").write_bytes(_with(long))
    code, errors, report, rejected = prepare("a.jsonl")
    assert (code, errors, report["examples"]) == (0, [], 9)
    [(line, reason)] = rejected
    assert line == 4
    wording(reason)


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
@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_preparing_ends_in_order_with_any_rows(prepare, tmp_path, rows):
    """Good rows beside them are prepared; a refusal is a line, never a traceback."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, *rows]))
    code, errors, report, rejected = prepare("a.jsonl", "data.max_rejected=1.0")
    if code:
        (error,) = errors
        assert code == 1
        assert "[data.tokens] allow = [" in error
    else:
        assert errors == []
    assert report["examples"] >= len(GOOD)
    assert report["rejected"] == len(rejected)
