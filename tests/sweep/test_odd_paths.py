"""Odd paths and numbers on the command line: one line that names them, and nothing is written or waited for."""

from __future__ import annotations

import json
import os
import socket

import pytest

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
def said(capsys):
    """Runs a command that is refused: its exit code and its one line."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        assert output.out == ""
        return ended.value.code, line

    return run


PREPARE = ("prepare", "--format", "math", "--input", "rows.jsonl", "--output")
EVALUATE = ("evaluate", "--all", "--data", "rows.jsonl", "--format", "math", "--output")
CARD = ("models", "card", "math", "--output")
EXPORT = ("models", "export", "math")
IMPORT = ("models", "import", "--name", "guest")
INIT = ("init",)

FOLDER = "name a folder, which need not be there yet"
CARD_FILE = "give a file to write, or no --output for standard output"
PLACE = "give another place for the output"
NEW = "give a folder, new or empty"
DESTINATION = "expected a new name, or an empty folder"
KIND = "no archive of this kind is written: let the name end in .tar, .tar.gz or .tgz, or in none for a folder"
ROUND = "Too many levels of symbolic links"

# The command, the path that it is given, and its line; HERE is the working directory.
ODD = [
    (INIT, "", "FOLDER: must not be empty"),
    (INIT, "dang", f"error: dang is a link to what is not there: {FOLDER}"),
    (INIT, "loop", f"error: loop cannot be used: {ROUND}: {FOLDER}"),
    (INIT, "file", f"error: file is a file: {FOLDER}"),
    (INIT, "fifo", f"error: fifo is no folder: {FOLDER}"),
    (INIT, "file/new/er", f"error: file/new/er cannot be made: HERE/file is a file: {FOLDER}"),
    (INIT, "dang/new", f"error: dang/new cannot be made: HERE/dang is a link to what is not there: {FOLDER}"),
    (INIT, LONG, f"error: {LONG} has too long a name: {FOLDER}"),
    (INIT, f"new/{LONG}/er", f"error: new/{LONG}/er cannot be made: HERE/new/{LONG} has too long a name: {FOLDER}"),
    (INIT, "https://x/y", 'FOLDER: must be a path on disk, not the URL "https://x/y"'),
    (CARD, "", "--output: must not be empty"),
    (CARD, ".", f"error: . is a folder: {CARD_FILE}"),
    (CARD, "folder", f"error: folder is a folder: {CARD_FILE}"),
    (CARD, "fifo", f"error: fifo is no regular file: {CARD_FILE}"),
    (CARD, "socket", f"error: socket is no regular file: {CARD_FILE}"),
    (CARD, "/dev/null", f"error: /dev/null is no regular file: {CARD_FILE}"),
    (CARD, "loop", f"error: loop cannot be written: {ROUND}: {CARD_FILE}"),
    (CARD, "file/x", f"error: file/x cannot be written: HERE/file is a file: {CARD_FILE}"),
    (CARD, LONG, f"error: {LONG} has too long a name: {CARD_FILE}"),
    (PREPARE, "", "--output: must not be empty"),
    (PREPARE, f"{LONG}.jsonl", f"error: {LONG}.jsonl has too long a name: {PLACE}"),
    (
        PREPARE,
        f"{'x' * 249}.jsonl",  # which could be written, but not the rejected rows beside it
        f"error: {'x' * 249}.rejected.jsonl has too long a name: {PLACE}",
    ),
    (PREPARE, "file/a.jsonl", f"error: file/a.jsonl cannot be written: HERE/file is a file: {PLACE}"),
    (PREPARE, "s3://x/a.jsonl", '--output: must be a path on disk, not the URL "s3://x/a.jsonl"'),
    (EVALUATE, "", "--output: must not be empty"),
    (EVALUATE, LONG, f"error: output HERE/{LONG} has too long a name: {NEW}"),
    (EVALUATE, "file", f"error: output HERE/file is a file: {NEW}"),
    (EVALUATE, "dang", f"error: output HERE/dang is a link to what is not there: {NEW}"),
    (EVALUATE, "loop", f"error: output HERE/loop cannot be used: {ROUND}: {NEW}"),
    (EVALUATE, "file/x", f"error: output HERE/file/x cannot be made: HERE/file is a file: {NEW}"),
    (EVALUATE, "s3://x/y", '--output: must be a path on disk, not the URL "s3://x/y"'),
    (EXPORT, "", "DESTINATION: must not be empty"),
    (EXPORT, LONG, f"error: HERE/{LONG} has too long a name: {DESTINATION}"),
    (EXPORT, "file/x", f"error: HERE/file/x cannot be made: HERE/file is a file: {DESTINATION}"),
    (EXPORT, "dang", "error: HERE/dang: there is something already; expected a new name, or an empty folder"),
    (EXPORT, "s3://x/y", 'DESTINATION: must be a path on disk, not the URL "s3://x/y"'),
    *(
        (EXPORT, name, f"error: HERE/{name}: {KIND}")
        for name in ("out.zip", "out.ZIP", "out.7z", "out.tar.xz", "out.tar.bz2", "out.tar.zst", "out.gz", "out.TAR")
    ),
    (IMPORT, "", "SOURCE: must not be empty"),
    (IMPORT, "https://x/y.tar", 'SOURCE: must be a path on disk, not the URL "https://x/y.tar"'),
    (IMPORT, "gone", "error: HERE/gone: there is no such file or folder"),
    (IMPORT, "dang", "error: HERE/dang: there is no such file or folder (it is a link to what is not there)"),
    (IMPORT, "loop", f"error: HERE/loop cannot be read: {ROUND}"),
    (IMPORT, "file/x", "error: HERE/file/x cannot be read: Not a directory"),
    (IMPORT, LONG, f"error: HERE/{LONG} cannot be read: File name too long"),
    (IMPORT, "fifo", "error: HERE/fifo is neither a folder nor a regular file: save the model to one of them"),
    (IMPORT, "/dev/zero", "error: /dev/zero is neither a folder nor a regular file: save the model to one of them"),
]


def snapshot(place):
    """All that is there, links as they are."""
    return {path: path.lstat().st_mtime_ns for path in place.rglob("*")}


@pytest.mark.parametrize(("command", "path", "line"), ODD)
def test_an_odd_path_is_one_line_that_names_it(place, said, command, path, line):
    """Nothing is written, and nothing that was there is touched."""
    before = snapshot(place)
    assert said(*command, path) == (2, line.replace("HERE", str(place)))
    assert snapshot(place) == before


def test_a_name_as_long_as_names_may_be_is_written(place, capsys):
    """What stands there while it is written has a name of its own, which is no longer."""
    for name in ("y" * 255, "ü" * 127):
        with pytest.raises(SystemExit) as ended:
            main([*CARD, name])
        assert ended.value.code == 0, capsys.readouterr().err
        assert (place / name).read_text().startswith("---\n")
    assert not list(place.glob(".tmp-*"))


def test_a_folder_that_is_read_only_is_refused_before_anything_starts(place, said, permissions_count):
    """The folder is named."""
    (place / "locked").mkdir(mode=0o555)
    why = f"{place}/locked is read-only for this user"
    assert said(*CARD, "locked/a") == (2, f"error: locked/a cannot be written: {why}: {CARD_FILE}")
    assert said(*PREPARE, "locked/a.jsonl") == (2, f"error: locked/a.jsonl cannot be written: {why}: {PLACE}")
    assert said(*EVALUATE, "locked/a") == (2, f"error: output {place}/locked/a cannot be made: {why}: {NEW}")
    assert said(*EXPORT, "locked/a") == (2, f"error: {place}/locked/a cannot be made: {why}: {DESTINATION}")
    assert said(*INIT, "locked/a") == (2, f"error: locked/a cannot be made: {why}: {FOLDER}")


# A name that a file of the model's folder or of the home has, and that is something else


def test_a_fifo_in_a_folder_that_is_imported_is_refused_without_waiting(place, said, tmp_path):
    """Be it the record or a file of the model."""
    for name in ("modelwright-model.json", "model.safetensors"):
        source = write_model(tmp_path / f"with {name}")
        (source / name).unlink(missing_ok=True)
        os.mkfifo(source / name)
        assert said(*IMPORT, str(source)) == (1, f"error: {source / name} is refused: it is no regular file")


def test_an_empty_name_for_an_import_is_none(place, said, tmp_path):
    """Also where the record has a name."""
    with pytest.raises(SystemExit):
        main([*EXPORT, "out"])
    line = (
        "error: '' cannot be a model's name: expected a lower-case letter, then any of a-z 0-9 . _ -, at most 128 "
        "together"
    )
    assert said("models", "import", "out", "--name", "") == (2, line)


def test_a_home_that_is_a_file_is_one_line(place, said, monkeypatch):
    """For what reads the registry in it, and for what works in it."""
    home = place / "file"
    monkeypatch.setenv("MODELWRIGHT_HOME", str(home))
    (place / "run.toml").write_text(RUN)
    elsewhere = ("--registry", f"sqlite:///{place}/other.db")
    run = (1, f"error: {home}/runs/tiny cannot be made: {home} is a file")
    assert said("run", "run.toml", *elsewhere) == run
    assert said("prepare", "run.toml", *elsewhere) == run
    monkeypatch.delenv("MODELWRIGHT_REGISTRY")
    registry = (1, f"error: registry {home}/registry.db cannot be used: Not a directory: {home}/registry.db")
    assert said("models", "list") == registry
    assert said("run", "run.toml") == registry


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
    """A terminal may stand in a folder that somebody else has removed."""
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
    wanted = (2, "error: the working directory has been removed: change to a folder that is there")
    if command[:2] == ["models", "export"] and command[-1].startswith("/"):
        with pytest.raises(SystemExit) as ended:
            main(command)  # nothing in it is relative
        assert ended.value.code == 0
        return
    assert said(*command) == wanted


# Numbers, and what is given twice

HUGE = "9" * 23
MANY = (
    "error: suite rows: 1 examples with 9223372036854775807 samples each are more answers than an evaluation holds: "
    "expected at most 1000000 together"
)
BITS = f"must be an integer of 64 bits, not {HUGE}"
RUN = """
name = "tiny"
seed = 1
[model.scratch]
[data]
format = "math"
[[data.sources]]
path = "rows.jsonl"
[train]
max_steps = 1
[[evaluate]]
name = "s"
path = "rows.jsonl"
metrics = ["exact_match"]
"""


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ((*PREPARE, "out.jsonl", "--limit", HUGE), f"--limit: {BITS}"),
        ((*EVALUATE, "out", "--limit", HUGE), f"--limit: {BITS}"),
        ((*EVALUATE, "out", "--samples", HUGE), f"--samples: {BITS}"),
        ((*EVALUATE, "out", "--max-tokens", HUGE), f"--max-tokens: {BITS}"),
        ((*EVALUATE, "out", "--seed", HUGE), f"--seed: {BITS}"),
        ((*EVALUATE, "out", "--temperature", "nan"), "--temperature: must be a finite number, not nan"),
        ((*EVALUATE, "out", "--temperature", "1e999"), "--temperature: must be a finite number, not inf"),
        ((*EVALUATE, "out", "--samples", str(2**63 - 1)), MANY),
        ((*EVALUATE, "out", "--data", "rows.jsonl"), "error: --data is given twice: give it once"),
        ((*EVALUATE, "out", "--data", "b", "--data", "c"), "error: --data is given 3 times: give it once"),
    ],
)
def test_a_number_that_is_too_large_or_a_path_too_many_is_one_line(place, said, command, line):
    """Not an endless loop, nor a silent choice; and no line says before it what was taken for granted."""
    assert said(*command) == (2, line)


@pytest.mark.parametrize(
    "key",
    ["seed", "data.sources.0.limit", "evaluate.0.limit", "evaluate.0.samples", "evaluate.0.generation.max_tokens"],
)
def test_the_same_numbers_in_a_run_file_are_held_to_the_same(place, said, key):
    """With the key."""
    (place / "run.toml").write_text(RUN)
    assert said("run", "run.toml", "--set", f"{key}={HUGE}") == (2, f"--set {key}: {BITS}")


def test_the_largest_number_is_no_limit_at_all(place, capsys):
    """As TOML's largest integer is."""
    with pytest.raises(SystemExit) as ended:
        main([*PREPARE, "out.jsonl", "--limit", str(2**63 - 1), "--seed", HUGE, "--json"])
    output = capsys.readouterr()
    assert (ended.value.code, output.err) == (0, "")
    assert json.loads(output.out)[0]["rows"] == 1
