"""Bad input for an evaluation without a run: one clear line each, the right code; nothing is lost or left behind."""

from __future__ import annotations

import json
import re

import pytest

from modelwright import NewModel
from modelwright.core.cli import main
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.stages.prepare.readers import READABLE

ADDRESS = "expected NAME (its newest version), NAME@VERSION such as math@3, or @ALIAS such as @production"
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


def like(line, expected):
    """Whether a line is as expected, in which "…" stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), line) is not None


def _said(capsys, arguments):
    """The exit code and the one line of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *arguments])
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return error.value.code, line


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        # data
        ({"data": "none.jsonl"}, 2, f"error: HERE/none.jsonl: no file is there (can read: {READABLE})"),
        ({"data": "*.none"}, 2, "error: HERE/*.none: no file matches this pattern"),
        ({"data": "nothing"}, 2, f"error: HERE/nothing: no file in this folder can be read (can: {READABLE})"),
        ({"data": "notes.docx"}, 2, f"error: HERE/notes.docx: cannot read this kind of file (can: {READABLE})"),
        ({"data": "empty.jsonl"}, 1, "error: HERE/empty.jsonl: the file has no rows"),
        ({"data": "blank.jsonl"}, 1, "error: HERE/blank.jsonl: the file has no rows"),
        ({"data": "utf16.jsonl"}, 1, "error: HERE/utf16.jsonl: it is UTF-16: save it as UTF-8"),
        (
            {"data": "half.jsonl"},
            1,
            (
                "error: suite s: 1 rows of HERE/half.jsonl cannot be read; the first is half.jsonl:2: not JSON: "
                "Unterminated string starting at at column 14"
            ),
        ),
        (
            {"data": "other.jsonl"},
            1,
            (
                "error: suite s: 1 rows of HERE/other.jsonl cannot be read; the first is other.jsonl:1: expected the "
                "columns…; this row has: frage"
            ),
        ),
        (
            {"data": "other.jsonl", "format": None},
            2,
            (
                "error: HERE/other.jsonl: no installed format reads its first rows as questions with answers (general: "
                "expected…; this row has: frage; math: expected…; this row has: frage; reasoning: expected…; this row "
                "has: frage): name one with --format, and its options with --option"
            ),
        ),
        (
            {"data": "none.jsonl", "format": None},
            2,
            f"error: HERE/none.jsonl: no file is there (can read: {READABLE})",
        ),
        ({"data": ""}, 2, "--data: must not be empty"),
        ({"data": "https://x/y"}, 2, '--data: must be a path on disk, not the URL "https://x/y"'),
        (
            {"data": "builtin:arithmetics/test"},
            2,
            (
                "error: there is no built-in data 'arithmetics/test' (there are: builtin:arithmetic/train, "
                "builtin:arithmetic/test, builtin:instructions/train, builtin:instructions/test)"
            ),
        ),
        # names
        (
            {"format": "maths"},
            2,
            "--format: there is no format 'maths', did you mean 'math'? (there are: general, math, reasoning)",
        ),
        (
            {"metric": "exact"},
            2,
            "--metric: there is no metric 'exact', did you mean 'exact_match'? (there are: exact_match, …)",
        ),
        ({"name": "../s"}, 2, '--name: must be a lower-case letter, then any of a-z 0-9 _ -, not "../s"'),
        (
            {"model": "mat"},
            1,
            (
                "error: there is no model 'mat', did you mean 'math'? (models: math; aliases: @best) in "
                "sqlite:///HERE/registry.db"
            ),
        ),
        (
            {"model": "math@9"},
            1,
            "error: there is no version 9 of 'math' (versions: 1-2) in sqlite:///HERE/registry.db",
        ),
        (
            {"model": "@worst"},
            1,
            "error: there is no alias '@worst' (aliases: @best; models: math) in sqlite:///HERE/registry.db",
        ),
        *(
            ({"model": name}, 2, f"--model: '{name}' is no model address: no model can have that name; {ADDRESS}")
            for name in ("Math", "", "a/b", "x" * 300)
        ),
        # registries
        (
            {"registry": "sqlite:///new.db", "model": None},
            1,
            "error: there are no models to evaluate: the registry is empty in sqlite:///new.db",
        ),
        (
            {"registry": "nowhere"},
            2,
            (
                "error: registry 'nowhere' is no URL: expected SCHEME://…, such as sqlite:///registry.db (schemes "
                "there are: …sqlite)"
            ),
        ),
        (
            {"registry": "sqlite:///good.jsonl"},
            1,
            "error: registry HERE/good.jsonl is no SQLite database: name another file",
        ),
        # output
        ({"output": "good.jsonl"}, 2, "error: output HERE/good.jsonl is a file: give a folder, new or empty"),
        (
            {"output": "good.jsonl/out"},
            2,
            "error: output HERE/good.jsonl/out cannot be made: HERE/good.jsonl is a file: give a folder, new or empty",
        ),
        (
            {"output": "full"},
            2,
            (
                "error: output HERE/full holds other files (thesis.tex): give a folder that is new, empty, or an "
                "earlier evaluation's"
            ),
        ),
        ({"output": "/proc/out"}, 2, "error: output /proc/out cannot be written: No such file or directory"),
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
    assert like(said, line.replace("HERE", str(place))), said
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
    lines = capsys.readouterr().err.splitlines()
    assert error.value.code == 2
    assert [line.replace(str(place), "HERE") for line in lines] == [
        (
            "error: output HERE/full holds other files (thesis.tex): give a folder that is new, empty, or an earlier "
            "evaluation's"
        ),
        (
            "error: there is no model 'mat', did you mean 'math'? (models: math; aliases: @best) in "
            "sqlite:///HERE/registry.db"
        ),
        "error: there is no version 7 of 'math' (versions: 1-2) in sqlite:///HERE/registry.db",
        "error: HERE/empty.jsonl: the file has no rows",
    ]


def test_a_read_only_output_is_refused(place, capsys, permissions_count):
    """Before anything starts."""
    (place / "nothing").chmod(0o555)
    code, said = _said(capsys, ["--all", "--data", "good.jsonl", "--format", "math", "--output", "nothing/out"])
    assert code == 2
    why = f"cannot be made: {place}/nothing is read-only for this user: give a folder, new or empty"
    assert said == f"error: output {place}/nothing/out {why}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("models = []\n", 'eval.toml:1 models: must not be empty: name models, or write "all"'),
        ('models = ["math", "math"]\n', 'eval.toml:1 models.1: model "math" is named twice'),
        ("models = 3\n", 'eval.toml:1 models: must be an array or "all", not 3'),
        ('models = "al"\n', 'eval.toml:1 models: must be an array or "all", not "al", did you mean "all"?'),
        ('models = "all"\nmodel = "x"\n', "eval.toml:2 model: unknown key, did you mean models?"),
        ('models = "all"\noutput = ""\n', "eval.toml:2 output: must not be empty"),
        (
            'models = "all"\n[variants.a]\n',
            "eval.toml:2 variants: unknown key, expected models, seed, evaluate, output, registry or plugins",
        ),
    ],
)
def test_a_wrong_evaluation_file_is_told_by_line(place, capsys, text, line):
    """As a run file is."""
    suite = '[[evaluate]]\nname = "s"\npath = "good.jsonl"\nformat = "math"\nmetrics = ["exact_match"]\n'
    (place / "eval.toml").write_text(text + suite)
    with pytest.raises(SystemExit) as error:
        main(["evaluate", "eval.toml"])
    assert capsys.readouterr().err == f"{line}\n"
    assert error.value.code == 2
