"""Prepared data as data sets of the package `datasets`."""

from __future__ import annotations

import datasets
import pytest
from tiny_run import tiny_run

import modelwright
from modelwright import TokenFolder, UsageError
from modelwright.core import runner
from modelwright.core.config import read_run

MESSAGES = {
    "messages": [{"role": "user", "content": "Warm?"}, {"role": "assistant", "content": "No.", "thinking": "3 °C"}]
}
BUCKET = 'data.tokens.packing = "bucket"'
TEXTS = [{"text": f"row {n} is a text of a few words"} for n in range(12)]


@pytest.fixture
def prepare(tmp_path, rows_file, monkeypatch):
    """Prepares rows; gives the run file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))

    def prepare(rows, *changes):
        rows_file(tmp_path / "rows.jsonl", rows)
        file = tmp_path / "run.toml"
        file.write_text(tiny_run('data.format = "general"\ndata.sources = [{ path = "rows.jsonl" }]', *changes))
        read = read_run(file)
        runner.execute(runner.open_run(read.configs[0], read.plugins), only="prepare")
        return file

    return prepare


def test_examples_have_all_columns_in_the_first_row_or_not(prepare):
    """A run is named as everywhere: its file, its name, its folder."""
    file = prepare([TEXTS[0], MESSAGES])
    examples = modelwright.load_prepared(file).examples
    assert examples["text"] == [TEXTS[0]["text"], None]
    assert examples[1]["messages"][1]["thinking"] == "3 °C"
    assert set(examples.features) == {"id", "messages", "answer", "tools", "text", "source", "choices", "meta"}
    folder = modelwright.load_prepared("tiny").folder
    assert modelwright.load_prepared(folder.parent).examples["id"] == examples["id"]


@pytest.mark.parametrize("packing", ["pack", "bucket"])
def test_a_row_of_tokens_is_what_is_trained_on_at_once(prepare, packing):
    """A pack, or an example; positions restart in each, and labels count what the trainer supervises."""
    prepared = modelwright.load_prepared(prepare(TEXTS, f'data.tokens.packing = "{packing}"'))
    tokens = TokenFolder(prepared.folder / "train")
    rows = list(prepared.tokens)
    assert len(rows) == (len(tokens.packs) if packing == "pack" else len(tokens)) > 1
    assert sorted(each for row in rows for each in row["ids"]) == sorted(row.id for row in tokens)
    assert sum(label != -100 for row in rows for label in row["labels"]) == tokens.trained_tokens().sum()
    for row in rows:
        assert row["position_ids"][0] == 0
        assert row["position_ids"].count(0) == len(row["ids"])
        pairs = zip(row["labels"], row["input_ids"], strict=True)
        assert all(label in (-100, token) for label, token in pairs)


def test_data_prepared_again_are_not_taken_from_the_cache_of_the_package(prepare):
    """And what is held out is a data set of its own, empty or not."""
    before = modelwright.load_prepared(prepare(TEXTS, BUCKET))
    assert (len(before.tokens), len(before.holdout)) == (12, 0)
    after = modelwright.load_prepared(prepare(TEXTS[:9], BUCKET, "data.holdout.fraction = 0.4"))
    assert len(after.examples) == len(after.tokens) + len(after.holdout) == 9
    assert 0 < len(after.holdout) < 9


def test_a_run_that_is_not_prepared(tmp_path, wording):
    """As for `data show`."""
    (tmp_path / "run.toml").write_text(tiny_run())
    with pytest.raises(UsageError) as error:
        modelwright.load_prepared(tmp_path / "run.toml")
    wording(error.value)
