"""Odd paths and numbers on the command line: one line that names them, and nothing is written or waited for."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from tiny_run import tiny_run

from modelwright.core.cli import main
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.testing.registry import new_model, write_model

LONG = "x" * 300
ROW = json.dumps({"question": "What is 1 and 1?", "answer": "#### 2"}) + "\n"


def kinds(place):
    """One of each thing that a path may lead to."""
    (place / "file").write_text("mine")
    (place / "folder").mkdir()
    (place / "folder/thesis.tex").write_text("mine")
    (place / "dang").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with rows, a registry with math@1, and odd things."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("MODELWRIGHT_REGISTRY", f"sqlite:///{tmp_path / 'registry.db'}")
    open_registry(f"sqlite:///{tmp_path / 'registry.db'}", discover()).add(new_model(), write_model(tmp_path / "model"))
    (place / "rows.jsonl").write_text(ROW)
    kinds(place)
    return place


@pytest.fixture
def said(capsys, wording):
    """Runs a command that is refused: its exit code and its one line, whose wording is checked."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert output.out == ""
        wording(line)
        return ended.value.code, line

    return run


PREPARE = ("prepare", "--format", "math", "--input", "rows.jsonl", "--output")
EVALUATE = ("evaluate", "--all", "--data", "rows.jsonl", "--format", "math", "--output")
CARD = ("models", "card", "math", "--output")
EXPORT = ("models", "export", "--no-verify", "math")
IMPORT = ("models", "import", "--name", "guest")
INIT = ("init",)

ALMOST = "y" * 249  # which could be written, but not the rejected rows beside it
# The commands, and the paths that each is given.
ODD = [
    (INIT, ("", "dang", "loop", "file", "fifo", "file/new/er", "dang/new", LONG, f"new/{LONG}/er", "https://x/y")),
    (CARD, ("", ".", "folder", "fifo", "socket", "/dev/null", "loop", "file/x", LONG)),
    (PREPARE, ("", f"{LONG}.jsonl", f"{ALMOST}.jsonl", "file/a.jsonl", "s3://x/a.jsonl")),
    (EVALUATE, ("", LONG, "file", "dang", "loop", "file/x", "s3://x/y")),
    (EXPORT, ("", LONG, "file/x", "dang", "s3://x/y")),
    (EXPORT, ("out.zip", "out.ZIP", "out.7z", "out.tar.xz", "out.tar.bz2", "out.tar.zst", "out.gz", "out.TAR")),
    (IMPORT, ("", "https://x/y.tar", "gone", "dang", "loop", "file/x", LONG, "fifo", "/dev/zero")),
]


def shown(value):
    """Long names are cut in a test's id."""
    return value if len(value) < 40 else f"{value[:8]}… of {len(value)} letters"


def snapshot(place):
    """All that is there, links as they are."""
    return {path: path.lstat().st_mtime_ns for path in place.rglob("*")}


@pytest.mark.parametrize(
    ("command", "path"),
    [
        pytest.param(command, path, id=f"{' '.join(command[:2])} {shown(path)!r}")
        for command, paths in ODD
        for path in paths
    ],
)
def test_an_odd_path_is_one_line_that_names_it(place, said, command, path):
    """Nothing is written, and nothing that was there is touched."""
    before = snapshot(place)
    code, line = said(*command, path)
    assert code == 2
    assert Path(path.replace(ALMOST, f"{ALMOST}.rejected")).name in line
    assert snapshot(place) == before


def test_a_name_as_long_as_names_may_be_is_written(place, capsys):
    """While it is written, it has a name of its own, which is not longer."""
    for name in ("y" * 255, "ü" * 127):
        with pytest.raises(SystemExit) as ended:
            main([*CARD, name])
        assert ended.value.code == 0, capsys.readouterr().err
        assert (place / name).read_text().startswith("---\n")
    assert not list(place.glob(".tmp-*"))


def test_a_folder_that_is_read_only_is_refused_before_anything_starts(place, said, permissions_count):
    """The folder is named."""
    (place / "locked").mkdir(mode=0o555)
    for command, path in ((CARD, "a"), (PREPARE, "a.jsonl"), (EVALUATE, "a"), (EXPORT, "a"), (INIT, "a")):
        code, line = said(*command, f"locked/{path}")
        assert code == 2
        assert f"{place}/locked " in line


# A name that a file of the model's folder or of the home has, and that is something else


def test_a_fifo_in_a_folder_that_is_imported_is_refused_without_waiting(place, said, tmp_path):
    """The record or a file of the model."""
    for name in ("modelwright-model.json", "model.safetensors"):
        source = write_model(tmp_path / f"with {name}")
        (source / name).unlink(missing_ok=True)
        os.mkfifo(source / name)
        code, line = said(*IMPORT, str(source))
        assert code == 1
        assert str(source / name) in line


def test_an_empty_name_for_an_import_is_none(place, said, tmp_path):
    """Also where the record has a name."""
    with pytest.raises(SystemExit):
        main([*EXPORT, "out"])
    assert said("models", "import", "out", "--name", "")[0] == 2


def test_a_home_that_is_a_file_is_one_line(place, said, monkeypatch):
    """For what reads the registry in it, and for what works in it."""
    home = place / "file"
    monkeypatch.setenv("MODELWRIGHT_HOME", str(home))
    (place / "run.toml").write_text(RUN)
    elsewhere = ("--registry", f"sqlite:///{place}/other.db")
    for command in (("run", "run.toml", *elsewhere), ("prepare", "run.toml", *elsewhere)):
        code, line = said(*command)
        assert code == 1
        assert str(home) in line
    monkeypatch.delenv("MODELWRIGHT_REGISTRY")
    for command in (("models", "list"), ("run", "run.toml")):
        code, line = said(*command)
        assert code == 1
        assert f"{home}/registry.db" in line


@pytest.mark.parametrize(
    "command",
    [
        ("init",),
        ("init", "new"),
        ("run", "/run.toml"),
        (*EVALUATE, "out"),
        (*PREPARE, "out.jsonl"),
        (*EXPORT, "out"),
        (*EXPORT, "/out"),
        (*CARD, "card.md"),
        (*IMPORT, "model"),
        ("models", "list"),
    ],
)
def test_a_working_directory_that_was_removed_is_one_line(tmp_path, said, monkeypatch, command):
    """A terminal may be in a folder that someone else has removed."""
    gone = tmp_path / "gone"
    gone.mkdir()
    (tmp_path / "run.toml").write_text(RUN)
    monkeypatch.delenv("MODELWRIGHT_HOME")
    if "models" in command and "list" not in command:
        url = f"sqlite:///{tmp_path}/registry.db"
        monkeypatch.setenv("MODELWRIGHT_REGISTRY", url)
        open_registry(url, discover()).add(new_model(), write_model(tmp_path / "model"))
    monkeypatch.chdir(gone)
    gone.rmdir()
    command = [f"{tmp_path}{part}" if part in ("/run.toml", "/out") else part for part in command]
    if command[:2] == ["models", "export"] and command[-1].startswith("/"):
        with pytest.raises(SystemExit) as ended:
            main(command)  # nothing in it is relative
        assert ended.value.code == 0
        return
    code, line = said(*command)
    assert code == 2
    assert "working directory" in line


# Numbers, and what is given twice

HUGE = "9" * 23
RUN = tiny_run("""
data.sources = [{ path = "rows.jsonl" }]
train.max_steps = 1
evaluate = [{ name = "s", path = "rows.jsonl", metrics = ["exact_match"] }]
""")


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (PREPARE, "--limit", HUGE),
        (EVALUATE, "--limit", HUGE),
        (EVALUATE, "--samples", HUGE),
        (EVALUATE, "--max-tokens", HUGE),
        (EVALUATE, "--seed", HUGE),
        (EVALUATE, "--temperature", "nan"),
        (EVALUATE, "--temperature", "1e999"),
        (EVALUATE, "--samples", str(2**63 - 1)),
        (EVALUATE, "--data", "rows.jsonl"),
        (EVALUATE, "--data", "b --data c"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_number_that_is_too_large_or_a_path_too_many_is_one_line(place, said, command, option, value):
    """Not an endless loop, nor a silent choice; and no line says before it what was taken for granted."""
    code, line = said(*command, "out.jsonl", option, *value.split())
    assert code == 2
    assert option.strip("-") in line


@pytest.mark.parametrize(
    "key",
    ["seed", "data.sources.0.limit", "evaluate.0.limit", "evaluate.0.samples", "evaluate.0.generation.max_tokens"],
)
def test_the_same_numbers_in_a_run_file_are_held_to_the_same(place, said, key):
    """With the key."""
    (place / "run.toml").write_text(RUN)
    code, line = said("run", "run.toml", "--set", f"{key}={HUGE}")
    assert code == 2
    assert key in line
    assert HUGE in line


def test_the_largest_number_is_no_limit_at_all(place, capsys):
    """As TOML's largest integer is."""
    with pytest.raises(SystemExit) as ended:
        main([*PREPARE, "out.jsonl", "--limit", str(2**63 - 1), "--seed", HUGE, "--json"])
    output = capsys.readouterr()
    assert (ended.value.code, output.err) == (0, "")
    assert json.loads(output.out)[0]["rows"] == 1
