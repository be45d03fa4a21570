"""`modelwright cache list | prune`: what is kept, what goes, and that runs lose nothing by it."""

from __future__ import annotations

import fcntl
import json
import os
import time

import pytest

RUN = """
name = "{name}"
[model.scratch]
vocab_size = 300
[data]
format = "general"
[[data.sources]]
path = "rows.jsonl"
[train]
max_steps = 1
"""


@pytest.fixture
def prepared(tmp_path, rows_file, modelwright):
    rows_file(tmp_path / "rows.jsonl", [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(60)])
    (tmp_path / "run.toml").write_text(RUN.format(name="tiny"))
    done = modelwright("prepare", "run.toml")
    assert done.returncode == 0, done.stderr


def said(modelwright, *arguments):
    done = modelwright("cache", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.usefixtures("prepared")
def test_what_is_kept_is_listed_by_kind_and_every_file_counts_once(modelwright, home):
    """A whole preparation consists of the shards' files."""
    lines = said(modelwright, "list").splitlines()
    assert lines[0].startswith(f"{home}/cache: ")
    assert [line.split()[:2] for line in lines if line.split()[:1] in (["examples"], ["prepared"], ["tokens"])] == [
        ["examples", "1"], ["prepared", "1"], ["tokens", "1"],
    ]  # fmt: skip
    listed = json.loads(said(modelwright, "list", "--json"))
    files = {path.stat().st_ino: path.stat().st_size for path in (home / "cache").rglob("*") if path.is_file()}
    lock = (home / "cache/.lock").stat().st_ino
    assert listed["size"] == sum(size for inode, size in files.items() if inode != lock)
    assert listed["size"] < sum(entry["size"] for entry in listed["entries"])


def test_nothing_is_kept_before_anything_was_prepared(wording, modelwright, home):
    """And to say so makes nothing."""
    wording(said(modelwright, "list").removesuffix("\n"), home=home)
    assert json.loads(said(modelwright, "list", "--json"))["entries"] == []
    assert not home.exists()


@pytest.mark.usefixtures("prepared")
def test_only_what_was_not_used_for_a_while_goes_and_runs_keep_their_files(wording, modelwright, home):
    """Removing entries that a run also has gains no room."""
    wording(said(modelwright, "prune").removesuffix("\n"), home=home)
    [old] = (home / "cache/tokens").iterdir()
    long_ago = time.time() - 31 * 86_400
    os.utime(old, (long_ago, long_ago))
    assert json.loads(said(modelwright, "prune", "--dry-run", "--json")) == {
        "entries": 1, "size": sum((old / name).stat().st_size for name in ("facts.json", "entry.json")),
        "dry_run": True,
    }  # fmt: skip
    assert old.exists()
    said(modelwright, "prune")
    assert not old.exists()
    assert said(modelwright, "prune", "--older-than", "0").startswith("2 entries removed")
    assert not [path for path in (home / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
    assert (home / "runs/tiny/prepare/train/00000.arrow").exists()
    again = modelwright("prepare", "run.toml")
    assert "Nothing to do" in again.stdout + again.stderr


@pytest.mark.usefixtures("prepared")
def test_nothing_is_removed_while_a_run_prepares_its_data(wording, modelwright, home):
    """One line, and the exit code of a failure."""
    with (home / "cache/.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        done = modelwright("cache", "prune", "--older-than", "0")
    assert done.returncode == 1
    wording(done.stderr.removesuffix("\n"), home=home)
    assert list((home / "cache/tokens").iterdir())


@pytest.mark.parametrize("days", ["-1", "nan", "soon"])
def test_a_wrong_number_of_days_is_a_usage_error(modelwright, days):
    """It names the option."""
    done = modelwright("cache", "prune", "--older-than", days)
    assert done.returncode == 2
    assert "--older-than" in done.stderr
