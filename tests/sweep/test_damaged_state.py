"""Damaged files of a run and of an evaluation: made anew where nothing is lost by it, else one line says what to do.

A disk that failed, a machine without power or an editor may have left anything there.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from modelwright.core.cli import main
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry

RUN = """
name = "tiny"
seed = 1
[model.scratch]
hidden_size = 16
layers = 1
heads = 2
vocab_size = 300
[data]
format = "math"
[[data.sources]]
path = "rows.jsonl"
[train]
max_steps = 2
batch_size = 4
checkpoint_every = 1
[[evaluate]]
name = "test"
path = "rows.jsonl"
metrics = ["math_accuracy"]
[evaluate.generation]
max_tokens = 2
"""
SECOND = RUN.replace('"tiny"', '"second"').partition("[model.scratch]")[0] + (
    '[model]\nbase = "tiny"\n' + RUN[RUN.index("[data]") :]
)
EVALUATE = ("--model", "tiny", "--data", "rows.jsonl", "--format", "math", "--metric", "math_accuracy", "--name", "own")
EVALUATE = ("evaluate", *EVALUATE, "--max-tokens", "2", "--output", "out")
STAGES = ("prepare", "train", "register", "evaluate", "promote")

# What a file may hold, and what is said of it.
BRACE = "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
CONTENTS = {
    "{": (b"{", BRACE),
    "an array": (b"[]", "not a JSON object"),
    "a text": (b'"done"', "not a JSON object"),
    "nothing": (b"", "empty"),
    "blocks of NUL": (b"\0" * 4096, "blank"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8"),
    "deep": (b"[" * 100_000, "nested too deeply"),
}
MARKS = CONTENTS | {
    "an empty object": (b"{}", "no fingerprint"),
    "another type": (b'{"fingerprint": 1, "inputs": {}, "outputs": {}}', "no fingerprint as it should be"),
    "half of it": (b'{"fingerprint": "a", "inputs": {}}', "no outputs"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and an evaluation that are done; and a copy of all, with which each test begins."""
    place = tmp_path_factory.mktemp("made") / "project"
    place.mkdir()
    rows = [{"question": f"What is {n} and 1?", "answer": f"#### {n + 1}"} for n in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "run.toml").write_text(RUN)
    (place / "second.toml").write_text(SECOND)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MODELWRIGHT_HOME", str(place / "home"))
        patch.delenv("MODELWRIGHT_REGISTRY", raising=False)
        for command in (("run", "run.toml"), EVALUATE):
            with pytest.raises(SystemExit) as ended:
                main([*command])
            assert ended.value.code == 0
    shutil.copytree(place, place.with_name("kept"))
    return place


@pytest.fixture
def project(made, monkeypatch):
    """The working directory, as it was when all was done."""
    shutil.rmtree(made)
    shutil.copytree(made.with_name("kept"), made)
    monkeypatch.chdir(made)
    monkeypatch.setenv("MODELWRIGHT_HOME", str(made / "home"))
    return made


@pytest.fixture
def run_folder(project):
    """The run's."""
    return project / "home/runs/tiny"


@pytest.fixture
def said(project, capsys):
    """Runs a command: (exit code, standard output, lines of standard error)."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err.splitlines()

    return run


@pytest.fixture
def planned(said):
    """What each stage of run.toml would do, and why."""

    def plan(*more):
        code, output, errors = said("run", "run.toml", "--dry-run", "--json", *more)
        assert (code, errors) == (0, [])
        return {step["stage"]: (step["done"], step["why"]) for step in json.loads(output)["tiny"]}

    return plan


DONE = (True, "done, and nothing that it depends on has changed")


def test_all_is_done(planned):
    """What the other tests begin with."""
    assert planned() == dict.fromkeys(STAGES, DONE)


@pytest.mark.parametrize("stage", ["prepare", "train", "promote"])
@pytest.mark.parametrize("content", MARKS)
def test_a_damaged_mark_counts_as_none_and_says_so(run_folder, planned, stage, content):
    """In the plan, whichever stage's it is."""
    damaged, why = MARKS[content]
    mark = run_folder / "done" / f"{stage}.json"
    mark.write_bytes(damaged)
    at = STAGES.index(stage)
    assert planned() == {
        **dict.fromkeys(STAGES[:at], DONE),
        stage: (False, f"{mark} is damaged, {why}"),
        **dict.fromkeys(STAGES[at + 1 :], (False, f"{stage} runs first")),
    }
    assert mark.read_bytes() == damaged, "a plan changes nothing"


@pytest.mark.parametrize("content", ["{", "an array", "an empty object", "nothing"])
def test_a_stage_after_a_damaged_mark_is_refused_in_a_line(run_folder, said, content):
    """As it is after a stage that is not done."""
    damaged, why = MARKS[content]
    mark = run_folder / "done/prepare.json"
    mark.write_bytes(damaged)
    line = f"error: tiny: prepare comes before evaluate ({mark} is damaged, {why}): run it first"
    assert said("evaluate", "run.toml") == (2, "", [line])


def test_the_same_command_mends_damaged_marks_without_training_again(run_folder, said, planned):
    """What the stages made is found where it was, and the registry has no second version."""
    before = {path: path.stat().st_mtime_ns for path in (run_folder / "train/model").iterdir()}
    (run_folder / "done/prepare.json").write_bytes(b"{")
    (run_folder / "done/train.json").write_bytes(b"")
    assert said("run", "run.toml")[0] == 0
    assert planned() == dict.fromkeys(STAGES, DONE)
    weights = run_folder / "train/model/model.safetensors"
    assert weights.stat().st_mtime_ns == before[weights]
    registry = open_registry(f"sqlite:///{run_folder.parent.parent / 'registry.db'}", discover())
    assert [version.address for version in registry.find()] == ["tiny@1"]


def test_a_file_that_a_stage_made_and_somebody_changed_is_told_from_one_that_is_gone(run_folder, said):
    """Both make the stage run again."""
    tokens = run_folder / "prepare/train/00000.arrow"
    size = tokens.stat().st_size
    with tokens.open("ab") as file:
        file.write(b"x")
    line = "error: tiny: prepare comes before train ({}): run it first"
    other = line.format(f"{tokens} is another file: it has {size + 1} bytes, and had {size}")
    assert said("train", "run.toml") == (2, "", [other])
    tokens.unlink()
    assert said("train", "run.toml") == (2, "", [line.format(f"{tokens} is gone")])


@pytest.mark.parametrize("content", [*CONTENTS, "an empty object"])
def test_damaged_results_of_a_runs_test_set_count_as_none(run_folder, planned, content):
    """And the plan says why."""
    damaged, why = MARKS[content]
    results = run_folder / "evaluate/test/results.json"
    results.write_bytes(damaged)
    plan = planned()
    assert plan["evaluate"] == (False, f"{results} is damaged, {why}")
    assert plan["promote"] == (False, "evaluate runs first")


def test_damaged_results_are_graded_again_and_said(run_folder, said, planned):
    """Where the mark is gone as well, as after a new training."""
    results = run_folder / "evaluate/test/results.json"
    results.write_bytes(b"{")
    (run_folder / "done/evaluate.json").unlink()
    code, _, errors = said("run", "run.toml")
    assert code == 0
    assert errors[0] == f"tiny evaluate {results} is damaged ({BRACE}): it is graded again"
    assert planned() == dict.fromkeys(STAGES, DONE)


def test_an_order_that_nobody_can_read_is_never_taken_for_none(run_folder, said):
    """The checkpoints beside it would be lost."""
    (run_folder / "done/train.json").unlink()
    order = run_folder / "train/order.json"
    order.write_bytes(b"{")
    line = (
        f"error: {order} is damaged ({BRACE}): whose checkpoints are beside it is not known; "
        "train anew with --only train --fresh"
    )
    assert said("run", "run.toml") == (1, "", [line])
    assert said("run", "run.toml", "--dry-run") == (1, "", [line])
    assert (run_folder / "train/checkpoints").is_dir()
    assert said("run", "run.toml", "--only", "train", "--fresh")[0] == 0


def test_damaged_events_are_passed_over(run_folder, planned):
    """All others count."""
    (run_folder / "done/train.json").unlink()
    (worker,) = (run_folder / "events").glob("*-train-worker-*.jsonl")
    with worker.open("ab") as file:
        file.write(b'{\n[]\n{"v": 1}\n\0\0\0\n\xff\n{"v": 1, "ti')
    assert planned()["train"] == (False, "interrupted; resumes after step 1")


def test_a_damaged_pin_of_a_base_is_a_line_whose_advice_works(project, said):
    """The base is what the registry says then."""
    pin = project / "home/runs/second/base.json"
    pin.parent.mkdir(parents=True)
    pin.write_bytes(b"[]")
    line = f"error: {pin} is damaged (not a JSON object): remove it, and the base is looked up anew"
    assert said("run", "second.toml", "--dry-run") == (1, "", [line])
    pin.unlink()
    assert said("run", "second.toml", "--dry-run")[0] == 0


# What is no file where one belongs, and no folder


@pytest.mark.parametrize("name", ["done", "events", "logs", "status", "prepare", "train", "evaluate"])
def test_a_file_in_the_place_of_a_folder_of_the_run_is_a_line(run_folder, said, name):
    """Before anything is done, and nothing is lost by it."""
    place = run_folder / name
    if place.is_dir():
        place.rename(place.with_name("aside"))
    place.write_text("mine")
    line = f"error: {place} is no folder: move it away, and a folder is made there"
    for more in ((), ("--dry-run",)):
        assert said("run", "run.toml", *more) == (1, "", [line])
    assert place.read_text() == "mine"


@pytest.mark.parametrize("name", ["runner.lock", "workers.lock", "config.json", "stop"])
def test_a_folder_in_the_place_of_a_file_of_the_run_is_a_line(run_folder, said, name):
    """So is this."""
    place = run_folder / name
    place.unlink(missing_ok=True)
    place.mkdir()
    line = f"error: {place} is no file: move it away, and a file is made there"
    for more in ((), ("--dry-run",), ("--fresh",)):
        assert said("run", "run.toml", *more) == (1, "", [line])


def test_a_mark_that_is_a_folder_is_a_line(run_folder, said):
    """No stage could put its own there."""
    mark = run_folder / "done/prepare.json"
    mark.unlink()
    mark.mkdir()
    assert said("run", "run.toml") == (1, "", [f"error: {mark} cannot be read: Is a directory"])


def test_a_runs_folder_that_is_a_file_is_a_line(run_folder, said):
    """And one in a home that is a file."""
    shutil.rmtree(run_folder)
    run_folder.write_text("mine")
    line = f"error: {run_folder} is no folder: move it away, and a folder is made there"
    assert said("run", "run.toml") == (1, "", [line])


# An evaluation without a run


@pytest.fixture
def task(project):
    """The folder of its one task."""
    return project / "out/.work/evaluate/tiny@1/own"


@pytest.mark.parametrize("content", [*CONTENTS, "an empty object"])
def test_damaged_results_of_an_evaluation_count_as_none(task, said, content):
    """The plan is to grade again."""
    (task / "results.json").write_bytes(MARKS[content][0])
    code, output, errors = said(*EVALUATE, "--dry-run", "--json")
    assert (code, errors) == (0, [])
    assert json.loads(output) == [{"model": "tiny@1", "suite": "own", "done": False}]


@pytest.mark.parametrize(("name", "why"), [("results.json", BRACE), ("samples.jsonl", "it has 1 bytes, and had {}")])
def test_damaged_results_of_an_evaluation_are_graded_again_and_said(task, said, name, why):
    """Of its samples, too."""
    file = task / name
    why = why.format(file.stat().st_size)
    file.write_bytes(b"{")
    code, _, errors = said(*EVALUATE)
    assert code == 0
    assert errors[0] == f"out evaluate {file} is damaged ({why}): it is graded again"
    assert said(*EVALUATE, "--dry-run", "--json")[2] == []


def test_samples_that_are_as_long_as_they_were_are_a_line_whose_advice_works(task, said):
    """Found when they are read for the report."""
    samples = task / "samples.jsonl"
    samples.write_bytes(b"{" + b" " * (samples.stat().st_size - 2) + b"\n")
    code, output, errors = said(*EVALUATE)
    assert (code, output) == (1, "")
    assert errors[-1].startswith(f"error: {samples} is damaged (line 1 is not JSON: ")
    assert errors[-1].endswith(f"): remove {task}, and the same command grades it again")
    shutil.rmtree(task)
    assert said(*EVALUATE)[0] == 0


@pytest.mark.parametrize("content", [*CONTENTS, "an empty object", "another model"])
def test_damaged_pins_are_a_line_whose_advice_works(project, said, content):
    """What is done stays done. A fresh beginning does not need them."""
    contents = CONTENTS | {
        "an empty object": (b"{}", "no asked"),
        "another model": (
            b'{"asked": [], "finished": false, "models": [{}]}',
            "its models are not as they were written",
        ),
    }
    pins = project / "out/.work/models.json"
    damaged, why = contents[content]
    pins.write_bytes(damaged)
    line = f"error: {pins} is damaged ({why}): remove it, and the models are looked up again"
    assert said(*EVALUATE) == (1, "", [line])
    code, output, errors = said(*EVALUATE, "--fresh", "--dry-run", "--json")
    assert (code, json.loads(output)[0]["done"], errors) == (0, False, [])
    pins.unlink()
    code, output, errors = said(*EVALUATE, "--dry-run", "--json")
    assert (code, json.loads(output)[0]["done"], errors) == (0, True, [])
    assert said(*EVALUATE)[0] == 0


@pytest.mark.parametrize("name", ["results.json", "report.md", "samples.jsonl"])
def test_a_folder_in_the_place_of_a_result_is_refused(project, said, name):
    """Before anything is graded."""
    place = project / "out" / name
    place.unlink()
    place.mkdir()
    line = f"error: output {place} is a folder: move it away, or give another folder"
    assert said(*EVALUATE) == (2, "", [line])


@pytest.mark.parametrize("name", ["done", "events", "logs", "status", "evaluate"])
def test_a_file_in_the_place_of_a_folder_of_the_evaluation_is_a_line(project, said, name):
    """As in a run."""
    place = project / "out/.work" / name
    if place.is_dir():
        shutil.rmtree(place)
    place.write_text("mine")
    line = f"error: {place} is no folder: move it away, and a folder is made there"
    assert said(*EVALUATE) == (1, "", [line])


def test_answers_that_are_damaged_are_asked_for_again(tmp_path):
    """Those around them are kept."""
    from modelwright.core.stages.evaluate.generate import CachedEngine

    path = tmp_path / "s.answers.jsonl"
    answer = {"key": "a", "text": "b", "token_ids": [1], "finish": "stop"}
    path.write_bytes(
        b'{"fingerprint": "f"}\n{"key"\n\0\0\n' + json.dumps(answer).encode() + b'\n{"key": "c"}\n[]\n{"key": "d", '
    )
    assert CachedEngine(None, path, "f").known == {"a": answer}
    path.write_bytes(b"{\n" + json.dumps(answer).encode() + b"\n")
    assert CachedEngine(None, path, "f").known == {}
    assert os.path.lexists(path)
