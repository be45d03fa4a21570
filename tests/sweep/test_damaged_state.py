"""Damaged files of a run and of an evaluation: made again if nothing is lost by it, else one line says what to do.

A disk that failed, a machine without power or an editor may have left anything there.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
from tiny_run import tiny_run

from modelwright.core.cli import main
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry

CHANGES = """
data.sources = [{ path = "rows.jsonl" }]
train.checkpoint_every = 1
[[evaluate]]
name = "test"
path = "rows.jsonl"
metrics = ["math_accuracy"]
[evaluate.generation]
max_tokens = 2
"""
EVALUATE = ("--model", "tiny", "--data", "rows.jsonl", "--format", "math", "--metric", "math_accuracy", "--name", "own")
EVALUATE = ("evaluate", *EVALUATE, "--max-tokens", "2", "--output", "out")
STAGES = ("prepare", "train", "register", "evaluate", "promote")

# What a file may hold instead.
CONTENTS = {
    "{": b"{",
    "an array": b"[]",
    "a text": b'"done"',
    "nothing": b"",
    "blocks of NUL": b"\0" * 4096,
    "UTF-16": "{}".encode("utf-16"),
    "deep": b"[" * 100_000,
}
MARKS = CONTENTS | {
    "an empty object": b"{}",
    "another type": b'{"fingerprint": 1, "inputs": {}, "outputs": {}}',
    "half of it": b'{"fingerprint": "a", "inputs": {}}',
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and an evaluation that are done; and a copy of all, with which each test begins."""
    place = tmp_path_factory.mktemp("made") / "project"
    place.mkdir()
    rows = [{"question": f"What is {n} and 1?", "answer": f"#### {n + 1}"} for n in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "run.toml").write_text(tiny_run(CHANGES))
    (place / "second.toml").write_text(tiny_run(CHANGES, 'name = "second"\nmodel.base = "tiny"'))
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
def refused(said, wording):
    """Runs a command that must end with this exit code and one line; gives the line, once its wording is checked."""

    def run(code, *arguments):
        found, output, errors = said(*arguments)
        assert (found, output, len(errors)) == (code, "", 1), errors
        wording(errors[0])
        return errors[0]

    return run


@pytest.fixture
def planned(said):
    """What each stage of run.toml would do, and why."""

    def plan(*more):
        code, output, errors = said("run", "run.toml", "--dry-run", "--json", *more)
        assert (code, errors) == (0, [])
        return {step["stage"]: (step["done"], step["why"]) for step in json.loads(output)["tiny"]}

    return plan


def is_done(plan):
    """By stage."""
    return {stage: done for stage, (done, _) in plan.items()}


ALL_DONE = dict.fromkeys(STAGES, True)


def test_all_is_done(planned, wording):
    """What the other tests begin with."""
    plan = planned()
    assert is_done(plan) == ALL_DONE
    wording(plan["train"][1])


@pytest.mark.parametrize("stage", ["prepare", "train", "promote"])
@pytest.mark.parametrize("content", MARKS)
def test_a_damaged_mark_counts_as_none_and_says_so(run_folder, planned, wording, stage, content):
    """In the plan, whichever stage's it is."""
    mark = run_folder / "done" / f"{stage}.json"
    mark.write_bytes(MARKS[content])
    at = STAGES.index(stage)
    plan = planned()
    assert list(is_done(plan).values()) == [each < at for each in range(len(STAGES))]
    assert str(mark) in plan[stage][1]
    wording(plan[stage][1])
    assert all(stage in why for _, why in list(plan.values())[at + 1 :])
    assert mark.read_bytes() == MARKS[content], "a plan changes nothing"


@pytest.mark.parametrize("content", ["{", "an array", "an empty object", "nothing"])
def test_a_stage_after_a_damaged_mark_is_refused_in_a_line(run_folder, refused, content):
    """As it is after a stage that is not done."""
    mark = run_folder / "done/prepare.json"
    mark.write_bytes(MARKS[content])
    assert str(mark) in refused(2, "evaluate", "run.toml")


def test_the_same_command_repairs_damaged_marks_without_training_again(run_folder, said, planned):
    """What the stages made is found where it was, and the registry has no second version."""
    before = {path: path.stat().st_mtime_ns for path in (run_folder / "train/model").iterdir()}
    (run_folder / "done/prepare.json").write_bytes(b"{")
    (run_folder / "done/train.json").write_bytes(b"")
    assert said("run", "run.toml")[0] == 0
    assert is_done(planned()) == ALL_DONE
    weights = run_folder / "train/model/model.safetensors"
    assert weights.stat().st_mtime_ns == before[weights]
    registry = open_registry(f"sqlite:///{run_folder.parent.parent / 'registry.db'}", discover())
    assert [version.address for version in registry.find()] == ["tiny@1"]


def test_a_file_that_a_stage_made_and_somebody_changed_is_not_one_that_is_gone(run_folder, refused):
    """Both make the stage run again."""
    tokens = run_folder / "prepare/train/00000.arrow"
    size = tokens.stat().st_size
    with tokens.open("ab") as file:
        file.write(b"x")
    line = refused(2, "train", "run.toml")
    assert all(str(fact) in line for fact in (tokens, size, size + 1))
    tokens.unlink()
    assert str(tokens) in refused(2, "train", "run.toml")


@pytest.mark.parametrize("content", [*CONTENTS, "an empty object"])
def test_damaged_results_of_a_runs_test_set_count_as_none(run_folder, planned, wording, content):
    """And the plan says why."""
    results = run_folder / "evaluate/test/results.json"
    results.write_bytes(MARKS[content])
    plan = planned()
    assert is_done(plan) == ALL_DONE | {"evaluate": False, "promote": False}
    assert str(results) in plan["evaluate"][1]
    wording(plan["evaluate"][1])


def test_damaged_results_are_graded_again_and_said(run_folder, said, planned, wording):
    """Where the mark is gone as well, as after a new training."""
    results = run_folder / "evaluate/test/results.json"
    results.write_bytes(b"{")
    (run_folder / "done/evaluate.json").unlink()
    code, _, errors = said("run", "run.toml")
    assert code == 0
    assert str(results) in errors[0]
    wording(errors[0])
    assert is_done(planned()) == ALL_DONE


def test_an_order_that_nobody_can_read_is_never_taken_for_none(run_folder, said, refused):
    """The checkpoints beside it would be lost."""
    (run_folder / "done/train.json").unlink()
    order = run_folder / "train/order.json"
    order.write_bytes(b"{")
    for more in ((), ("--dry-run",)):
        assert str(order) in refused(1, "run", "run.toml", *more)
    assert (run_folder / "train/checkpoints").is_dir()
    assert said("run", "run.toml", "--only", "train", "--fresh")[0] == 0


def test_damaged_events_are_skipped(run_folder, planned, wording):
    """All others count."""
    (run_folder / "done/train.json").unlink()
    (worker,) = (run_folder / "events").glob("*-train-worker-*.jsonl")
    with worker.open("ab") as file:
        file.write(b'{\n[]\n{"v": 1}\n\0\0\0\n\xff\n{"v": 1, "ti')
    done, why = planned()["train"]
    assert not done
    wording(why)


def test_a_damaged_pin_of_a_base_is_a_line_whose_advice_works(project, said, refused):
    """The base is what the registry says then."""
    pin = project / "home/runs/second/base.json"
    pin.parent.mkdir(parents=True)
    pin.write_bytes(b"[]")
    assert str(pin) in refused(1, "run", "second.toml", "--dry-run")
    pin.unlink()
    assert said("run", "second.toml", "--dry-run")[0] == 0


# A folder where a file belongs, and the reverse


@pytest.mark.parametrize("name", ["done", "events", "logs", "status", "prepare", "train", "evaluate"])
def test_a_file_in_the_place_of_a_folder_of_the_run_is_a_line(run_folder, refused, name):
    """Before anything is done, and nothing is lost by it."""
    place = run_folder / name
    if place.is_dir():
        place.rename(place.with_name("aside"))
    place.write_text("mine")
    for more in ((), ("--dry-run",)):
        assert str(place) in refused(1, "run", "run.toml", *more)
    assert place.read_text() == "mine"


@pytest.mark.parametrize("name", ["runner.lock", "workers.lock", "config.json", "stop"])
def test_a_folder_in_the_place_of_a_file_of_the_run_is_a_line(run_folder, refused, name):
    """So is this."""
    place = run_folder / name
    place.unlink(missing_ok=True)
    place.mkdir()
    for more in ((), ("--dry-run",), ("--fresh",)):
        assert str(place) in refused(1, "run", "run.toml", *more)


def test_a_mark_that_is_a_folder_is_a_line(run_folder, refused):
    """No stage could put its own there."""
    mark = run_folder / "done/prepare.json"
    mark.unlink()
    mark.mkdir()
    assert str(mark) in refused(1, "run", "run.toml")


def test_a_runs_folder_that_is_a_file_is_a_line(run_folder, refused):
    """And one in a home that is a file."""
    shutil.rmtree(run_folder)
    run_folder.write_text("mine")
    assert str(run_folder) in refused(1, "run", "run.toml")


# An evaluation without a run


@pytest.fixture
def task(project):
    """The folder of its one task."""
    return project / "out/.work/evaluate/tiny@1/own"


@pytest.mark.parametrize("content", [*CONTENTS, "an empty object"])
def test_damaged_results_of_an_evaluation_count_as_none(task, said, content):
    """The plan is to grade again."""
    (task / "results.json").write_bytes(MARKS[content])
    code, output, errors = said(*EVALUATE, "--dry-run", "--json")
    assert (code, errors) == (0, [])
    assert json.loads(output) == [{"model": "tiny@1", "suite": "own", "done": False}]


@pytest.mark.parametrize("name", ["results.json", "samples.jsonl"])
def test_damaged_results_of_an_evaluation_are_graded_again_and_said(task, said, wording, name):
    """Of its samples, too."""
    file = task / name
    size = file.stat().st_size
    file.write_bytes(b"{")
    code, _, errors = said(*EVALUATE)
    assert code == 0
    assert str(file) in errors[0]
    wording(errors[0], size=size)
    assert said(*EVALUATE, "--dry-run", "--json")[2] == []


def test_samples_that_are_as_long_as_they_were_are_a_line_whose_advice_works(task, said, wording):
    """Found when they are read for the report."""
    samples = task / "samples.jsonl"
    samples.write_bytes(b"{" + b" " * (samples.stat().st_size - 2) + b"\n")
    code, output, errors = said(*EVALUATE)
    assert (code, output) == (1, "")
    assert str(samples) in errors[-1]
    assert str(task) in errors[-1]
    wording(errors[-1])
    shutil.rmtree(task)
    assert said(*EVALUATE)[0] == 0


@pytest.mark.parametrize("content", [*CONTENTS, "an empty object", "another model"])
def test_damaged_pins_are_a_line_whose_advice_works(project, said, refused, content):
    """What is done stays done. A fresh beginning does not need them."""
    contents = CONTENTS | {
        "an empty object": b"{}",
        "another model": b'{"requested": [], "finished": false, "models": [{}]}',
    }
    pins = project / "out/.work/models.json"
    pins.write_bytes(contents[content])
    assert str(pins) in refused(1, *EVALUATE)
    code, output, errors = said(*EVALUATE, "--fresh", "--dry-run", "--json")
    assert (code, json.loads(output)[0]["done"], errors) == (0, False, [])
    pins.unlink()
    code, output, errors = said(*EVALUATE, "--dry-run", "--json")
    assert (code, json.loads(output)[0]["done"], errors) == (0, True, [])
    assert said(*EVALUATE)[0] == 0


@pytest.mark.parametrize("name", ["results.json", "report.md", "samples.jsonl"])
def test_a_folder_in_the_place_of_a_result_is_refused(project, refused, name):
    """Before anything is graded."""
    place = project / "out" / name
    place.unlink()
    place.mkdir()
    assert str(place) in refused(2, *EVALUATE)


@pytest.mark.parametrize("name", ["done", "events", "logs", "status", "evaluate"])
def test_a_file_in_the_place_of_a_folder_of_the_evaluation_is_a_line(project, refused, name):
    """As in a run."""
    place = project / "out/.work" / name
    if place.is_dir():
        shutil.rmtree(place)
    place.write_text("mine")
    assert str(place) in refused(1, *EVALUATE)


def test_damaged_answers_are_generated_again(tmp_path):
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
