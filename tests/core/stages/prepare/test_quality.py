"""`[data.quality]` in a run: what it leaves out, what it needs, and what makes the stage run again."""

from __future__ import annotations

import json

import pytest

from modelwright import ModelwrightError
from modelwright.core import runner
from modelwright.core.config import read_run

RUN = """
name = "clean"
[model.scratch]
vocab_size = 300
[data]
format = "math"
[[data.sources]]
path = "train.jsonl"
[train]
max_steps = 1
"""
SUITE = """
[[evaluate]]
name = "held"
path = "test.jsonl"
metrics = ["math_accuracy"]
"""
STORY = (
    "Natalia sold clips to {} of her friends in April, and then she sold half as many clips in May. How many in all?"
)


def row(number, *, said=None):
    return {"problem": STORY.format(number), "solution": f"It is \\boxed{{{said or number + number // 2}}}."}


def other(number):
    """A problem with a story of its own."""
    names = ("crates", "barrels", "wagons", "ships", "lorries")
    text = " ".join(f"{names[(number + n) % 5]} {number * n} arrive" for n in range(4))
    return {"problem": f"On day {number}: {text}. Which day is it?", "solution": f"\\boxed{{{number}}}"}


TEST = (row(48),)


@pytest.fixture
def prepare(tmp_path, rows_file, monkeypatch):
    """Prepares a run over these rows: the counts, and the lines of removed.jsonl."""
    monkeypatch.chdir(tmp_path)

    def run(rows, *overrides, test=TEST, suite=SUITE):
        rows_file(tmp_path / "train.jsonl", rows)
        rows_file(tmp_path / "test.jsonl", list(test))
        (tmp_path / "run.toml").write_text(RUN + suite)
        read = read_run(tmp_path / "run.toml", overrides=overrides)
        opened = runner.open_run(read.configs[0], read.plugins)
        runner.check([opened], ["prepare"])
        result = runner.execute(opened, only="prepare")
        removed = opened.folder.stage("prepare") / "removed.jsonl"
        lines = [json.loads(line) for line in removed.read_text().splitlines()] if removed.exists() else []
        return result, lines

    return run


OTHERS = [other(number) for number in range(1, 30)]


def test_questions_of_the_runs_own_test_sets_are_left_out(prepare):
    """With any answers; the report has both texts."""
    result, lines = prepare([*OTHERS, row(48, said=1)], "data.quality.decontaminate=true")
    assert result.outputs["prepare"]["removed"] == {"duplicate": 0, "contaminated": 1}
    [line] = lines
    assert (line["check"], line["source"], line["suite"]) == ("contaminated", "train.jsonl:30", "held")
    assert (line["other"], line["question"]) == ("test.jsonl:1", row(48)["problem"])
    assert result.outputs["prepare"]["rows"] == len(OTHERS)


def test_questions_of_named_files_are_left_out_too(prepare):
    """A run without test sets of its own has those of others to keep clear of."""
    result, lines = prepare([*OTHERS, row(48)], 'data.quality.decontaminate_against=["test.jsonl"]', suite="")
    assert result.outputs["prepare"]["removed"]["contaminated"] == 1
    assert lines[0]["suite"].endswith("/test.jsonl")


def test_near_duplicates_are_left_out(prepare):
    """The first one stays."""
    again = {**row(48), "problem": row(48)["problem"].replace("and then", "and")}
    result, [line] = prepare([row(48), *OTHERS, again], 'data.quality.deduplicate="near"')
    assert result.outputs["prepare"]["removed"] == {"duplicate": 0, "near-duplicate": 1}
    assert (line["source"], line["other"]) == ("train.jsonl:31", "train.jsonl:1")


def test_solutions_that_come_to_another_answer_are_left_out(wording, prepare, tmp_path):
    """By the metric that will grade the model; the format says what the reference is."""
    good = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "#### 2"}], "answer": "2"}
    bad = {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "#### 5"}], "answer": "4"}
    overrides = ('data.format="general"', 'evaluate.0.format="math"', "data.quality.verify_answers=true")
    result, [line] = prepare([good, bad], *overrides)
    assert result.outputs["prepare"]["removed"] == {"duplicate": 0, "unverified": 1}
    wording(line["reason"])
    assert (line["answer"], line["text"]) == ("4", "#### 5")


def test_another_test_set_prepares_again_and_another_limit_does_not(prepare):
    """The questions are what the tokens depend on, not how many of them are asked."""
    rows, clean = [*OTHERS, row(48), row(96)], "data.quality.decontaminate=true"
    prepare(rows, clean)
    assert not prepare(rows, clean, "evaluate.0.limit=1")[0].performed
    again, lines = prepare(rows, clean, test=[row(48), row(96)])
    assert again.performed
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("override", "suite"),
    [("data.quality.verify_answers=true", ""), ('data.quality.decontaminate_against=["gone.jsonl"]', SUITE)],
    ids=["no metric", "no file"],
)
def test_what_a_check_lacks_is_reported_before_anything_starts(wording, prepare, home, override, suite):
    """One line, and nothing is written."""
    with pytest.raises(ModelwrightError) as caught:
        prepare(OTHERS, override, suite=suite)
    [line] = caught.value.lines
    wording(line)
    assert not home.exists()


def test_a_test_set_with_an_unreadable_row_stops_the_decontamination(wording, prepare):
    """What cannot be read cannot be kept clear of."""
    with pytest.raises(ModelwrightError) as caught:
        prepare(OTHERS, "data.quality.decontaminate=true", test=[row(48), {"nothing": 1}])
    wording(caught.value)


def test_gsm8ks_test_questions_are_found_among_its_training_questions(prepare, shared_data, tmp_path, rows_file):
    """And its training questions are clean but for a few."""
    train = (shared_data / "gsm8k" / "train.jsonl").read_text().splitlines()[:1500]
    test = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in [*train, *test[:50]]]
    result, lines = prepare(rows, "data.quality.decontaminate=true", test=[json.loads(line) for line in test])
    found = {line["source"] for line in lines}
    assert {f"train.jsonl:{number}" for number in range(1501, 1551)} <= found
    assert len(found) <= 50 + 15
    assert result.outputs["prepare"]["removed"]["contaminated"] == len(found)
