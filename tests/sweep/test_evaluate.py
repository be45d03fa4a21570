"""Bad input for an evaluation without a run: one clear line each, the right code; nothing is lost or left behind."""

from __future__ import annotations

import json

import pytest

from modelwright import NewModel
from modelwright.core.cli import main
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry

ROW = json.dumps({"question": "What is 1 and 1?", "answer": "#### 2"}) + "\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with data of many kinds, a registry with math@1, math@2 and @best, and an empty one."""
    monkeypatch.chdir(tmp_path)
    files = {
        "good.jsonl": ROW.encode(),
        "empty.jsonl": b"",
        "blank.jsonl": b"\n\n",
        "utf16.jsonl": ROW.encode("utf-16"),
        "half.jsonl": ROW.encode() + b'{"question": "What',
        "other.jsonl": b'{"frage": "1+1?"}\n',
        "notes.docx": b"PK",
        "full/thesis.tex": b"mine",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    registry = open_registry("sqlite:///registry.db", discover())
    for version in "12":
        registry.add(NewModel(name="math", fingerprint=version), model)
    registry.set_alias("best", "math", 1)
    monkeypatch.setenv("MODELWRIGHT_REGISTRY", f"sqlite:///{tmp_path / 'registry.db'}")
    return tmp_path


def _said(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *arguments])
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return error.value.code, said.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        # data
        ({"data": "none.jsonl"}, 2, "none.jsonl: no file is there"),
        ({"data": "*.none"}, 2, "*.none: no file matches this pattern"),
        ({"data": "nothing"}, 2, "nothing: no file in this folder can be read"),
        ({"data": "notes.docx"}, 2, "notes.docx: cannot read this kind of file"),
        ({"data": "empty.jsonl"}, 1, "empty.jsonl: the file has no rows"),
        ({"data": "blank.jsonl"}, 1, "blank.jsonl: the file has no rows"),
        ({"data": "utf16.jsonl"}, 1, "UTF-16"),
        ({"data": "half.jsonl"}, 1, "suite s: 1 rows of"),
        ({"data": "other.jsonl"}, 1, "suite s: 1 rows of"),
        ({"data": "other.jsonl", "format": None}, 2, "no installed format reads its first rows"),
        ({"data": "none.jsonl", "format": None}, 2, "none.jsonl: no file is there"),
        ({"data": "builtin:arithmetics/test"}, 2, "arithmetics"),
        # names
        ({"format": "maths"}, 2, "--format: there is no format 'maths', did you mean 'math'?"),
        ({"metric": "exact"}, 2, "--metric: there is no metric 'exact', did you mean 'exact_match'?"),
        ({"name": "../s"}, 2, "--name: must be a lower-case letter, then any of a-z 0-9 _ -"),
        ({"model": "mat"}, 1, "there is no model 'mat', did you mean 'math'?"),
        ({"model": "math@9"}, 1, "there is no version 9 of 'math' (versions: 1-2)"),
        ({"model": "@worst"}, 1, "there is no alias '@worst'"),
        ({"model": "Math"}, 2, "'Math' is no model address"),
        ({"model": ""}, 2, "model address"),
        ({"model": "a/b"}, 2, "'a/b' is no model address"),
        ({"model": "x" * 300}, 2, "no model can have that name"),
        # registries
        ({"registry": "sqlite:///new.db", "model": None}, 1, "there are no models to evaluate: the registry is empty"),
        ({"registry": "nowhere"}, 2, "registry 'nowhere' is no URL"),
        ({"registry": "sqlite:///good.jsonl"}, 1, "good.jsonl"),
        # output
        ({"output": "good.jsonl"}, 2, "good.jsonl is a file; give a folder, new or empty"),
        ({"output": "good.jsonl/out"}, 2, "good.jsonl is not a folder; give a folder, new or empty"),
        ({"output": "full"}, 2, "full holds other files (thesis.tex): give a folder that is new, empty, or an earlier"),
        ({"output": "/proc/out"}, 2, "/proc/out cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(place, capsys, changes, code, line):
    """Before anything starts: no folder is made, no file is touched."""
    values = {"model": "math", "data": "good.jsonl", "format": "math", "metric": "exact_match", "name": "s"}
    values |= {"output": "out"} | changes
    arguments = [part for name, value in values.items() if value is not None for part in (f"--{name}", value)]
    arguments += ["--all"] if values["model"] is None else []
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "registry.db" not in path.name}
    found, said = _said(capsys, arguments)
    assert line in said
    assert found == code
    assert not (place / "out").exists()
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "registry.db" not in path.name}
    assert after.keys() - before.keys() <= {place / "new.db"}
    assert {path: after[path] for path in before} == before


def test_all_that_is_wrong_is_told_at_once(place, capsys):
    """A line each."""
    words = "--model mat --model math@7 --data empty.jsonl --format math --output full"
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *words.split()])
    lines = capsys.readouterr().err.strip().splitlines()[-4:]
    assert error.value.code == 2
    for part, said in zip(("holds other files", "'mat'", "no version 7 of 'math'", "has no rows"), lines, strict=True):
        assert part in said


def test_a_read_only_output_is_refused(place, capsys, permissions_count):
    """Before anything starts."""
    (place / "nothing").chmod(0o555)
    code, said = _said(capsys, ["--all", "--data", "good.jsonl", "--format", "math", "--output", "nothing/out"])
    assert code == 2
    assert said == f"error: output {place}/nothing/out cannot be written: {place}/nothing is read-only for this user"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("models = []\n", "eval.toml:1 models: must not be empty"),
        ('models = ["math", "math"]\n', 'model "math" is named twice'),
        ("models = 3\n", "eval.toml:1 models: "),
        ('models = "al"\n', "eval.toml:1 models: "),
        ('models = "all"\nmodel = "x"\n', "eval.toml:2 model: unknown key, did you mean models?"),
        ('models = "all"\noutput = ""\n', "eval.toml:2 output: must not be empty"),
        ('models = "all"\n[variants.a]\n', "unknown key"),
    ],
)
def test_a_wrong_evaluation_file_is_told_by_line(place, capsys, text, line):
    """As a run file is."""
    suite = '[[evaluate]]\nname = "s"\npath = "good.jsonl"\nformat = "math"\nmetrics = ["exact_match"]\n'
    (place / "eval.toml").write_text(text + suite)
    with pytest.raises(SystemExit) as error:
        main(["evaluate", "eval.toml"])
    assert line in capsys.readouterr().err
    assert error.value.code == 2


def test_a_folder_of_an_earlier_evaluation_that_was_tampered_with_is_told_of(place, capsys):
    """Its own files are JSON; what is not is named, not taken for an empty one."""
    (place / "out/.work").mkdir(parents=True)
    (place / "out/.work/models.json").write_text("{")
    code, said = _said(capsys, ["--all", "--data", "good.jsonl", "--format", "math", "--output", "out"])
    assert code == 1
    assert f"{place}/out/.work/models.json is not what an evaluation leaves there" in said
