"""Rows of Parquet files: plain values, streamed, and a clear line for what is none."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.config.data import SourceConfig
from modelwright.core.stages.prepare.sources import raw_rows, read_source, source_digests


def _rows(path, **options):
    return list(read_source(SourceConfig(path=str(path)), seed=1, **options))


@pytest.fixture
def parquet(tmp_path):
    def write(name="a.parquet", **columns):
        pq.write_table(pa.table(columns), tmp_path / name, row_group_size=300)
        return tmp_path / name

    return write


def test_rows_come_in_order_over_batches_and_row_groups(parquet):
    """With their numbers."""
    path = parquet(question=[f"q{n}" for n in range(1000)], answer=[f"a{n}" for n in range(1000)])
    rows = _rows(path)
    assert [row.value for row in rows] == [{"question": f"q{n}", "answer": f"a{n}"} for n in range(1000)]
    assert [row.line for row in rows] == list(range(1, 1001))
    assert {row.file for row in rows} == {"a.parquet"}


SECOND = dt.datetime(2026, 3, 1, 12, 30, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (pa.array(["x"]), "x"),
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([None], pa.string()), None),
        (pa.array([None]), None),
        (pa.array([7], pa.uint64()), 7),
        (pa.array([1.5]), 1.5),
        (pa.array([1.5], pa.float16()), 1.5),
        (pa.array([True]), True),
        (pa.array(["é".encode()]), "é"),
        (pa.array([SECOND]), "2026-03-01T12:30:01+00:00"),
        (pa.array([1], pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
        (pa.array([dt.date(2026, 3, 1)]), "2026-03-01"),
        (pa.array([dt.time(12, 30)]), "12:30:00"),
        (pa.array([dt.timedelta(seconds=90)]), "0:01:30"),
        (pa.array([decimal.Decimal("1.50")]), "1.50"),
        (pa.array([[1, 2]]), [1, 2]),
        (pa.array([[]], pa.list_(pa.int64())), []),
        (pa.array([{"role": "user", "turns": [{"at": SECOND}]}]),
         {"role": "user", "turns": [{"at": "2026-03-01T12:30:01+00:00"}]}),
        (pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64())), {"a": 1, "b": None}),
        (pa.array([{"a": None, "b": [{"c": None, "d": 1}, None]}]), {"b": [{"d": 1}, None]}),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_values_become_what_json_has(parquet, array, value):
    """Formats and rejected.jsonl know nothing of Arrow."""
    [row] = _rows(parquet(column=array))
    assert row.value == {"column": value}
    assert json.loads(json.dumps(row.value)) == row.value


@pytest.mark.parametrize(
    "array",
    [pa.array([b"\x89PNG"]), pa.array([{"bytes": b"\xff"}]), pa.array([400 * 10**9], pa.timestamp("s"))],
    ids=["bytes", "struct", "year-14645"],
)
def test_a_row_with_a_value_that_json_has_not_is_kept_aside(wording, parquet, array):
    """With what can be shown of it."""
    rows = _rows(parquet(question=["q"], picture=array))
    assert rows[0].value is None
    wording(rows[0].reason)
    assert rows[0].text == '{"question": "q"}'


def test_text_that_is_not_utf8_is_the_rows_trouble_not_the_files(tmp_path):
    """A writer in another language put Latin-1 into a text column."""
    bad = pa.array([b"ok", b"caf\xe9", b"ok"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": bad}), tmp_path / "a.parquet")
    rows = _rows(tmp_path / "a.parquet")
    assert [row.value is None for row in rows] == [False, True, False]
    assert rows[1].reason.startswith("column 'question': 'utf-8' codec can't decode byte 0xe9")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
        lambda _: b"",
        lambda _: b'{"question": "q"}\n',
        lambda content: content[:4] + b"\xff" * 3000 + content[3004:],
    ],
    ids=["half", "100 bytes", "nothing", "JSONL", "damaged rows"],
)
def test_a_file_that_is_not_parquet_is_named(wording, parquet, damage):
    """In one line."""
    path = parquet(question=[f"question {n} " * 9 for n in range(1000)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelwrightError) as caught:
        _rows(path)
    wording(caught.value)


def test_a_file_without_rows_or_with_a_column_twice_is_refused(wording, tmp_path, parquet):
    """As with every kind."""
    with pytest.raises(ModelwrightError) as caught:
        _rows(parquet(question=pa.array([], pa.string())))
    wording(caught.value)
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(ModelwrightError) as caught:
        _rows(tmp_path / "b.parquet")
    wording(caught.value)


def test_a_changed_schema_is_reported_once_and_its_rows_are_read(wording, tmp_path, parquet):
    """The format decides row by row; a person hears of it once, not once a row."""
    parquet("a.parquet", question=["q"], answer=["1"])
    parquet("b.parquet", question=["q"], answer=["1"])
    parquet("c.parquet", question=["q"], solution=["1"])
    parquet("d.parquet", question=["q"], solution=[1])
    (tmp_path / "e.csv").write_text("question,solution\nq,1\n")
    (tmp_path / "f.jsonl").write_text('{"other": 1}\n')
    notices = []
    rows = list(raw_rows(SourceConfig(path=str(tmp_path)), seed=1, notice=notices.append))
    assert [row.file for row in rows] == ["a.parquet", "b.parquet", "c.parquet", "d.parquet", "e.csv", "f.jsonl"]
    assert [notice.partition(":")[0] for notice in notices] == ["c.parquet", "d.parquet"]
    for notice in notices:
        wording(notice)


def test_only_parquet_and_zstandard_need_pyarrow(tmp_path):
    """And the error says what to install if it is missing."""
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from modelwright.core.config.data import SourceConfig\n"
        "from modelwright.core.stages.prepare.sources import read_source\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(len(list(read_source(SourceConfig(path=name), seed=1))))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    names = [str(tmp_path / name) for name in ("a.csv", "a.parquet", "a.jsonl.zst")]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "1"
    for line, name in zip(done.stdout.splitlines()[1:], names[1:], strict=True):
        assert line.startswith(f"MissingDependencyError {name}: reading .{name.rpartition('.')[2]} files needs pyarrow")
        assert "pip install 'modelwright[train]'" in line


ROWS = [{"question": f"q{n}", "meta": {"level": n}, "tags": ["a", None]} for n in range(700)]


def rows(path):
    return list(read_source(SourceConfig(path=str(path)), seed=1))


def test_a_data_set_that_was_saved_to_disk_is_read_in_its_order(tmp_path):
    """In all its shards; its JSON files are not data."""
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    found = rows(tmp_path / "saved")
    assert [row.value for row in found] == ROWS
    assert (found[0].file, found[0].line) == ("data-00000-of-00003.arrow", 1)
    digests = source_digests(SourceConfig(path=str(tmp_path / "saved")), 1)
    assert [name for name, _ in digests] == [f"data-0000{n}-of-00003.arrow" for n in range(3)]


def test_a_data_set_of_several_splits_has_to_be_named_by_one(wording, tmp_path):
    """A run trains on one of them; the other is for its evaluation."""
    from datasets import Dataset, DatasetDict

    splits = DatasetDict(train=Dataset.from_list(ROWS[:5]), test=Dataset.from_list(ROWS[5:7]))
    splits.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ModelwrightError) as caught:
        rows(tmp_path / "saved")
    folder = tmp_path / "saved"
    wording(caught.value)
    assert [row.value for row in rows(folder / "test")] == ROWS[5:7]


@pytest.mark.parametrize("write", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_is_a_file_or_a_stream(tmp_path, write):
    """By its first bytes, not by its name."""
    table = pa.Table.from_pylist(ROWS)
    with write(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    assert [row.value for row in rows(tmp_path / "a.arrow")] == ROWS


def test_what_is_none_or_cut_short_is_one_line(wording, tmp_path):
    """With how far it was read."""
    (tmp_path / "a.arrow").write_bytes(b"no arrow at all, by no means")
    with pytest.raises(ModelwrightError) as caught:
        rows(tmp_path / "a.arrow")
    wording(caught.value)
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    whole = (tmp_path / "b.arrow").read_bytes()
    (tmp_path / "b.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelwrightError) as caught:
        rows(tmp_path / "b.arrow")
    wording(caught.value)
    (tmp_path / "c.arrow").write_bytes(b"")
    with pytest.raises(ModelwrightError) as caught:
        rows(tmp_path / "c.arrow")
    wording(caught.value)


@pytest.mark.parametrize("state", ["{", "{}"])
def test_a_damaged_state_is_one_line(wording, tmp_path, state):
    """The file that says which files there are."""
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ModelwrightError) as caught:
        rows(tmp_path)
    wording(caught.value)


def test_a_shard_that_is_gone_is_named(wording, tmp_path):
    """As any file that is not there."""
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    with pytest.raises(ModelwrightError) as caught:
        rows(tmp_path)
    wording(caught.value)
