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
    """The exit code and the one line of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *arguments])
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return error.value.code, line


_BAD: list[tuple[dict[str, str | None], int]] = [
    ({"data": "none.jsonl"}, 2),
    ({"data": "*.none"}, 2),
    ({"data": "nothing"}, 2),
    ({"data": "notes.docx"}, 2),
    ({"data": "empty.jsonl"}, 1),
    ({"data": "blank.jsonl"}, 1),
    ({"data": "utf16.jsonl"}, 1),
    ({"data": "half.jsonl"}, 1),
    ({"data": "other.jsonl"}, 1),
    ({"data": "other.jsonl", "format": None}, 2),
    ({"data": "none.jsonl", "format": None}, 2),
    ({"data": ""}, 2),
    ({"data": "https://x/y"}, 2),
    ({"data": "builtin:arithmetics/test"}, 2),
    ({"format": "maths"}, 2),
    ({"metric": "exact"}, 2),
    ({"name": "../s"}, 2),
    ({"model": "mat"}, 1),
    ({"model": "math@9"}, 1),
    ({"model": "@worst"}, 1),
    ({"model": "Math"}, 2),
    ({"model": ""}, 2),
    ({"model": "a/b"}, 2),
    ({"model": "x" * 300}, 2),
    ({"registry": "sqlite:///new.db", "model": None}, 1),
    ({"registry": "nowhere"}, 2),
    ({"registry": "sqlite:///good.jsonl"}, 1),
    ({"output": "good.jsonl"}, 2),
    ({"output": "good.jsonl/out"}, 2),
    ({"output": "full"}, 2),
    ({"output": "/proc/out"}, 2),
]


@pytest.mark.parametrize(
    ("changes", "code"),
    _BAD,
    ids=[", ".join(f"{key}={str(value)[:30]}" for key, value in one.items()) for one, _ in _BAD],
)
def test_bad_input_is_one_line_and_loses_nothing(place, capsys, wording, changes, code):
    """Before anything starts: no folder is made, no file is touched."""
    values = {"model": "math", "data": "good.jsonl", "format": "math", "metric": "exact_match", "name": "s"}
    values |= {"output": "out"} | changes
    arguments = [part for name, value in values.items() if value is not None for part in (f"--{name}", value)]
    arguments += ["--all"] if values["model"] is None else []
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "registry.db" not in path.name}
    found, said = _said(capsys, arguments)
    assert found == code
    wording(said, here=place)
    assert not (place / "out").exists()
    after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "registry.db" not in path.name}
    assert after.keys() - before.keys() <= {place / "new.db"}
    assert {path: after[path] for path in before} == before


def test_everything_that_is_wrong_is_reported_at_once(place, capsys, wording):
    """A line each."""
    words = "--model mat --model math@7 --data empty.jsonl --format math --output full"
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *words.split()])
    lines = capsys.readouterr().err.splitlines()
    assert error.value.code == 2
    assert len(lines) == 4
    for line in lines:
        wording(line, here=place)


def test_a_read_only_output_is_refused(place, capsys, wording, permissions_count):
    """Before anything starts."""
    (place / "nothing").chmod(0o555)
    code, said = _said(capsys, ["--all", "--data", "good.jsonl", "--format", "math", "--output", "nothing/out"])
    assert code == 2
    wording(said, here=place)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("models = []", 1),
        ('models = ["math", "math"]', 1),
        ("models = 3", 1),
        ('models = "al"', 1),
        ('models = "all"\nmodel = "x"', 2),
        ('models = "all"\noutput = ""', 2),
        ('models = "all"\n[variants.a]', 2),
    ],
)
def test_a_wrong_evaluation_file_is_reported_by_line(place, capsys, wording, text, line):
    """As a run file is."""
    suite = '[[evaluate]]\nname = "s"\npath = "good.jsonl"\nformat = "math"\nmetrics = ["exact_match"]\n'
    (place / "eval.toml").write_text(f"{text}\n{suite}")
    with pytest.raises(SystemExit) as error:
        main(["evaluate", "eval.toml"])
    (said,) = capsys.readouterr().err.splitlines()
    assert error.value.code == 2
    assert said.startswith(f"eval.toml:{line} ")
    wording(said)
