"""`models tag`, `delete`, `gc` and `verify`."""

import io
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


@pytest.mark.parametrize("arguments", ["team", "=x", "a=1 a=2", "a=1 --remove a", "a=1 --remove tem"])
def test_a_wrong_tag_is_one_line_and_changes_nothing(filled, models, arguments, wording):
    """Exit code 2: the command line is wrong."""
    before = filled.find()
    code, out, err = models("tag", "math", *arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    wording(err)
    assert filled.find() == before


# Deleting


def test_a_version_is_deleted_and_its_files_are_freed_by_gc(filled, models, tmp_path, wording):
    """Only what no other version needs; a dry run only counts."""
    weights = write_model(tmp_path / "heavy", b"heavy weights")
    filled.add(new_model("heavy"), weights)
    for command in (["delete", "heavy", "--yes"], ["gc", "--dry-run"]):
        code, out, err = models(*command)
        assert (code, err) == (0, "")
        wording(out)
    assert json.loads(models("gc", "--dry-run", "--json")[1]) == {"contents": 1, "size": 13, "dry_run": True}
    wording(models("gc")[1])
    assert json.loads(models("gc", "--json")[1]) == {"contents": 0, "size": 0, "dry_run": False}
    wording(models("gc")[1])
    assert models("verify")[0] == 0


def test_several_are_deleted_at_once_and_listed_as_json(filled, models):
    """One that is named twice is deleted once."""
    filled.set_alias("production", "math", 2)
    found = json.loads(models("delete", "math@1", "general", "general@1", "--yes", "--json")[1])
    assert [(each["name"], each["version"]) for each in found] == [("math", 1), ("general", 1)]
    assert [version.address for version in filled.find()] == ["math@2"]


@pytest.mark.parametrize(
    ("arguments", "code"), [("math", 2), ("general math@1", 1), ("@production", 1), ("general math@7", 1)]
)
def test_what_may_not_be_deleted_is_one_line_and_nothing_is(filled, models, arguments, code, wording):
    """Nor anything else on the command line."""
    before = filled.find()
    ended, out, err = models("delete", *arguments.split(), "--yes")
    assert (ended, out, err.count("\n")) == (code, "", 1)
    wording(err)
    assert filled.find() == before


def test_without_a_terminal_yes_must_be_said(filled, models, monkeypatch, wording):
    """A script deletes nothing by accident."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, out, err = models("delete", "general")
    assert (code, out) == (2, "")
    wording(err)
    assert len(filled.find("general")) == 1


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1)])
def test_on_a_terminal_the_user_confirms(filled, answer, code, left):
    """Enter alone means no."""
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


def test_undamaged_models_are_said_to_be(filled, models, wording):
    """All of them, unless some are named."""
    code, out, err = models("verify")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["general@1", "math@1", "math@2"]
    assert models("verify", "@production") == (0, out.splitlines(keepends=True)[1], "")
    wording(out)


def test_damage_is_named_file_by_file_and_ends_with_1(filled, models, home, tmp_path, wording):
    """Each model that has it, and what to do."""
    filled.add(new_model("fine"), write_model(tmp_path / "fine", b"fine"))
    place = content(home, filled.get("math"), "model.safetensors")
    place.chmod(0o644)
    place.write_bytes(b"weighty")
    code, out, err = models("verify", "math@1", "fine")
    assert code == 1
    assert out.splitlines()[1].startswith(f"  model.safetensors: {place} ")
    wording(out)
    wording(err)
    code, out, _ = models("verify", "--json")
    assert code == 1
    assert [(each["name"], len(each["problems"])) for each in json.loads(out)] == [
        ("fine", 0),
        ("general", 1),
        ("math", 1),
        ("math", 1),
    ]


def test_nothing_to_verify_is_said(models, home, wording):
    """And nothing is created."""
    code, out, err = models("verify")
    assert (code, err) == (0, "")
    wording(out)
    assert models("verify", "--json")[1] == "[]\n"
    assert not home.exists()


def test_a_registry_whose_models_are_all_deleted_differs_from_none(registry, models, tmp_path, wording):
    """It exists, and its history is there."""
    registry.add(new_model(), write_model(tmp_path / "model"))
    registry.delete("math", 1)
    code, out, err = models("list")
    assert (code, err) == (0, "")
    wording(out)
