"""`models tag`, `delete`, `gc` and `verify`."""

import json
import os
import pty
import subprocess
import sys

import pytest

from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.testing.registry import new_model, write_model


@pytest.fixture
def registry(home):
    return open_registry(f"sqlite:///{home}/registry.db", discover())


@pytest.fixture
def filled(registry, tmp_path):
    """general@1, math@1 with the alias production, math@2."""
    folder = write_model(tmp_path / "trained")
    for name, fingerprint in (("math", "first"), ("math", "second"), ("general", "first")):
        registry.add(new_model(name, fingerprint), folder)
    registry.set_alias("production", "math", 1)
    return registry


# Tags


def test_tags_are_set_shown_and_taken_away(filled, models):
    """A value may hold '='; the registry's history knows of it."""
    assert models("tag", "math@1", "team=vision", "formula=a=b", "--remove", "note")[0] == 0
    assert dict(filled.get("math", 1).model.tags) == {"team": "vision", "formula": "a=b"}
    shown = [line.split() for line in models("tag", "@production")[1].splitlines()]
    assert shown == [["math@1"], ["formula", "a=b"], ["team", "vision"]]
    tags = {"formula": "a=b"}
    expected = {"name": "math", "version": 1, "tags": tags}
    assert json.loads(models("tag", "math@1", "--remove", "team", "--json")[1]) == expected
    assert [event.kind for event in filled.events()][-2:] == ["tags", "tags"]


def test_a_model_without_tags_says_so(filled, models):
    """Nothing else is printed."""
    models("tag", "math", "--remove", "note", "--remove", "team")
    assert models("tag", "math") == (0, "math@2 has no tags\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["team"], "'team' is no tag: expected KEY=VALUE, such as team=nlp (--remove KEY takes one away)"),
        (["=x"], "'' cannot be a tag's key: expected 1 to 200 printable characters without '='"),
        (["a=1", "a=2"], "tag 'a' is given twice"),
        (["a=1", "--remove", "a"], "tag 'a' is both set and removed"),
        (["a=1", "--remove", "tem"], "math@2 has no tag 'tem' to remove (tags: note, team)"),
    ],
)
def test_a_wrong_tag_is_one_line_and_changes_nothing(filled, models, arguments, message):
    """Exit code 2: the command line is wrong."""
    before = filled.find()
    assert models("tag", "math", *arguments) == (2, "", f"error: {message}\n")
    assert filled.find() == before


# Deleting

POINTED_TO = (
    "math@1 cannot be deleted: '@production' points to it; point it to another model first: "
    "modelwright models alias production math@2"
)


def test_a_version_is_deleted_and_its_files_are_freed_by_gc(filled, models, home, tmp_path):
    """Only what no other version needs; a dry run only counts."""
    weights = write_model(tmp_path / "heavy", b"heavy weights")
    filled.add(new_model("heavy"), weights)
    digest = filled.get("heavy").digest
    lines = f"deleted heavy@1 (digest {digest})\nits files are kept until: modelwright models gc\n"
    assert models("delete", "heavy", "--yes") == (0, lines, "")
    where = f"in sqlite:///{home}/registry.db\n"
    assert models("gc", "--dry-run") == (0, f"1 file (13 B) would be freed {where}", "")
    assert json.loads(models("gc", "--dry-run", "--json")[1]) == {"contents": 1, "size": 13, "dry_run": True}
    assert models("gc") == (0, f"1 file (13 B) freed {where}", "")
    assert models("gc") == (0, f"0 files (0 B) freed {where}", "")
    assert models("verify")[0] == 0


def test_several_are_deleted_at_once_and_told_as_json(filled, models):
    """One that is named twice is deleted once."""
    filled.set_alias("production", "math", 2)
    found = json.loads(models("delete", "math@1", "general", "general@1", "--yes", "--json")[1])
    assert [(each["name"], each["version"]) for each in found] == [("math", 1), ("general", 1)]
    assert [version.address for version in filled.find()] == ["math@2"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["math"], 2, "math has 2 versions: say which to delete, such as math@2"),
        (
            ["general", "math@1"],
            1,
            POINTED_TO,
        ),
        (
            ["@production"],
            1,
            POINTED_TO,
        ),
        (["general", "math@7"], 1, "there is no version 7 of 'math' (versions: 1-2) in "),
    ],
)
def test_what_may_not_be_deleted_is_one_line_and_nothing_is(filled, models, arguments, code, message):
    """Whatever else stands on the command line."""
    before = filled.find()
    ended, out, err = models("delete", *arguments, "--yes")
    assert (ended, out) == (code, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert filled.find() == before


def test_without_a_terminal_yes_must_be_said(filled, modelwright):
    """A script deletes nothing by accident."""
    done = modelwright("models", "delete", "general", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nobody can be asked here whether to delete: add --yes\n"


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1)])
def test_on_a_terminal_one_is_asked(filled, answer, code, left):
    """No is the answer that is meant by none."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "modelwright.core", "models", "delete", "general"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as deleting:
        os.close(theirs)
        text = b""
        while b"[y/N]" not in text:
            text += os.read(ours, 1000)
        os.write(ours, answer.encode())
        assert deleting.wait(60) == code
    os.close(ours)
    assert b"Delete general@1 from sqlite:///" in text
    assert len(filled.find("general")) == left


# Verifying


def content(home, version, path):
    file = next(file for file in version.files if file.path == path)
    return home / "files" / file.sha256[:2] / file.sha256


def test_models_as_they_were_are_said_to_be(filled, models):
    """All of them, unless some are named."""
    lines = [f"{address}   3 files as they were" for address in ("general@1", "math@1", "math@2")]
    assert models("verify") == (0, "\n".join(lines) + "\n", "")
    assert models("verify", "@production") == (0, lines[1] + "\n", "")


def test_damage_is_named_file_by_file_and_ends_with_1(filled, models, home, tmp_path):
    """Each model that has it, and what to do."""
    filled.add(new_model("fine"), write_model(tmp_path / "fine", b"fine"))
    place = content(home, filled.get("math"), "model.safetensors")
    place.chmod(0o644)
    place.write_bytes(b"weighty")
    code, out, err = models("verify", "math@1", "fine")
    assert code == 1
    assert out.splitlines()[:2] == ["math@1   damaged", out.splitlines()[1]]
    assert out.splitlines()[1].startswith(f"  model.safetensors: {place} is damaged: its sha256 is ")
    assert out.splitlines()[2] == "fine@1   3 files as they were"
    assert err.startswith(f"error: 1 of 2 models in sqlite:///{home}/registry.db is damaged: restore the files")
    code, out, _ = models("verify", "--json")
    assert code == 1
    assert [(each["name"], len(each["problems"])) for each in json.loads(out)] == [
        ("fine", 0),
        ("general", 1),
        ("math", 1),
        ("math", 1),
    ]


def test_nothing_to_verify_is_said(models, home):
    """And nothing is created."""
    assert models("verify") == (0, f"There are no models in sqlite:///{home}/registry.db\n", "")
    assert models("verify", "--json")[1] == "[]\n"
    assert not home.exists()


def test_a_registry_whose_models_are_all_deleted_is_told_from_one_that_never_was(registry, models, home, tmp_path):
    """It exists, and its history is there."""
    registry.add(new_model(), write_model(tmp_path / "model"))
    registry.delete("math", 1)
    url = f"sqlite:///{home}/registry.db"
    assert models("list") == (0, f"No models any more in {url}; its history is kept\n", "")
