"""Arrow files, and data sets that `datasets` saved to disk, as sources."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.config.schema import SourceConfig
from modelwright.core.stages.prepare.sources import read_source, source_digests

ROWS = [{"question": f"q{n}", "meta": {"level": n}, "tags": ["a", None]} for n in range(700)]


def rows(path):
    return list(read_source(SourceConfig(path=str(path)), seed=1))


def test_a_data_set_that_was_saved_to_disk_is_read_in_its_order(tmp_path):
    """In all its shards; its JSON files are no data."""
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    found = rows(tmp_path / "saved")
    assert [row.value for row in found] == ROWS
    assert (found[0].file, found[0].line) == ("data-00000-of-00003.arrow", 1)
    digests = source_digests(SourceConfig(path=str(tmp_path / "saved")), 1)
    assert [name for name, _ in digests] == [f"data-0000{n}-of-00003.arrow" for n in range(3)]


def test_a_data_set_of_several_splits_has_to_be_named_by_one(tmp_path):
    """A run trains on one of them; the other is for its evaluation."""
    from datasets import Dataset, DatasetDict

    splits = DatasetDict(train=Dataset.from_list(ROWS[:5]), test=Dataset.from_list(ROWS[5:7]))
    splits.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ModelwrightError) as caught:
        rows(tmp_path / "saved")
    folder = tmp_path / "saved"
    assert str(caught.value) == f"{folder}: a data set of several splits: name one of {folder}/train, {folder}/test"
    assert [row.value for row in rows(folder / "test")] == ROWS[5:7]


@pytest.mark.parametrize("write", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_is_a_file_or_a_stream(tmp_path, write):
    """By its first bytes, whatever its name."""
    table = pa.Table.from_pylist(ROWS)
    with write(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    assert [row.value for row in rows(tmp_path / "a.arrow")] == ROWS


def test_what_is_none_or_cut_short_is_one_line(tmp_path):
    """With how far it was read."""
    (tmp_path / "a.arrow").write_bytes(b"no arrow at all, by no means")
    with pytest.raises(ModelwrightError, match=r"a\.arrow: not an Arrow file, or cut short: "):
        rows(tmp_path / "a.arrow")
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    whole = (tmp_path / "b.arrow").read_bytes()
    (tmp_path / "b.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelwrightError, match=r"b\.arrow: cannot be read beyond row \d00: "):
        rows(tmp_path / "b.arrow")
    (tmp_path / "c.arrow").write_bytes(b"")
    with pytest.raises(ModelwrightError, match=r"c\.arrow: "):
        rows(tmp_path / "c.arrow")


@pytest.mark.parametrize(("state", "line"), [("{", "cannot be read"), ("{}", "it does not say the data set's files")])
def test_a_damaged_state_is_one_line(tmp_path, state, line):
    """The file that says which files there are."""
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(ModelwrightError, match=rf"state\.json: {line}"):
        rows(tmp_path)


def test_a_shard_that_is_gone_is_named(tmp_path):
    """As any file that is not there."""
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    with pytest.raises(ModelwrightError, match=r"data-00000-of-00001\.arrow: "):
        rows(tmp_path)
