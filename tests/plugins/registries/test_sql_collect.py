"""Freeing what no version needs, beside those who add, and when it is killed; and reading everything again."""

import json
import shutil
import subprocess
import sys

import pytest

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.registry import Collected
from modelwright.core.testing.registry import new_model, write_model
from modelwright.plugins.registries import SqlOptions
from modelwright.plugins.registries.files import FileStore
from modelwright.plugins.registries.sql import SqlRegistry


def connect(path):
    return SqlRegistry(SqlOptions(url=f"sqlite:///{path}"))


@pytest.fixture
def database(tmp_path):
    return tmp_path / "home" / "registry.db"


@pytest.fixture
def registry(database):
    return connect(database)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "trained")


def store(database):
    """Every file and link of the store."""
    return sorted(path for path in (database.parent / "files").rglob("*") if not path.is_dir() or path.is_symlink())


def contents(database):
    return [path for path in store(database) if not path.is_symlink()]


def test_a_deleted_versions_contents_and_tree_are_freed(database, registry, folder, tmp_path):
    """But for those that another version has as well; what is freed is counted in files and bytes."""
    first = registry.add(new_model(), folder)
    other = registry.add(new_model(fingerprint="b"), write_model(tmp_path / "b", b"other weights"))
    registry.delete("math", 1)
    assert registry.collect() == Collected(contents=1, size=len(b"weights"))
    assert not (database.parent / "files" / "trees" / first.digest).exists()
    assert {path.name for path in contents(database)} == {file.sha256 for file in other.files}
    assert len(store(database)) == 6


def test_collecting_what_does_not_exist_creates_nothing(database, registry):
    """A wrong URL costs nothing."""
    assert registry.collect() == registry.collect(dry_run=True) == Collected(contents=0, size=0)
    assert not database.parent.exists()


def test_contents_of_a_registration_that_was_killed_are_freed(database, registry, folder):
    """They are in the store, and no row knows of them."""
    registry.add(new_model(), folder)
    orphan = database.parent / "files" / "ab" / ("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"12345")
    assert registry.collect(dry_run=True) == Collected(contents=1, size=5)
    assert orphan.exists()
    assert registry.collect() == Collected(contents=1, size=5)
    assert not orphan.exists()


@pytest.mark.parametrize("step", ["add", "tree"])
def test_a_collection_between_copying_and_registering_takes_nothing_from_the_new_version(
    registry, database, folder, monkeypatch, step
):
    """The contents are gone when the row is to be written: they are copied once more, and the version is whole."""
    registry.add(new_model(), folder)
    registry.delete("math", 1)
    done, collected = getattr(FileStore, step), []

    def then_collect(self, *arguments):
        result = done(self, *arguments)
        if not collected:
            collected.append(connect(database).collect())
        return result

    # The instant between two steps cannot be met from outside otherwise; everything in it is real.
    monkeypatch.setattr(FileStore, step, then_collect)
    added = registry.add(new_model(fingerprint="again"), folder)
    assert collected == [Collected(contents=3, size=25)]
    assert registry.verify(added) == []
    assert registry._store.complete(added.digest, added.files)


def test_a_collection_waits_for_a_version_that_is_being_written(registry, database, folder, tmp_path):
    """A holder of the lock can finish; the row is seen then, and its contents stay."""
    registry.add(new_model(), folder)
    registry.delete("math", 1)
    program = f"""
import sys, time
from pathlib import Path
from sqlalchemy import Engine, event
from modelwright.core.testing.registry import new_model
from modelwright.plugins.registries import SqlOptions
from modelwright.plugins.registries.sql import SqlRegistry

@event.listens_for(Engine, "before_cursor_execute")
def wait(connection, cursor, statement, *_):
    if statement.startswith("INSERT INTO models"):
        print("inside", flush=True)
        sys.stdin.readline()

SqlRegistry(SqlOptions(url="sqlite:///{database}")).add(new_model(fingerprint="b"), Path("{folder}"))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as adding:
        assert adding.stdout.readline() == "inside\n"
        collecting = subprocess.Popen(
            [sys.executable, "-m", "modelwright.core", "models", "gc", "--registry", f"sqlite:///{database}", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            collecting.wait(2)
        adding.communicate("go\n", timeout=60)
        out, _ = collecting.communicate(timeout=60)
    assert json.loads(out) == {"contents": 0, "size": 0, "dry_run": False}
    assert registry.verify(registry.get("math")) == []


def test_files_that_another_registry_may_need_are_not_freed(registry, database, folder):
    """Two databases in one folder keep their contents in one place: the line says so, and what to do."""
    registry.add(new_model(), folder)
    connect(database.with_name("other.db")).add(new_model(), folder)
    registry.delete("math", 1)
    for dry_run in (True, False):
        with pytest.raises(RegistryError, match=r"other\.db"):
            registry.collect(dry_run=dry_run)
    assert len(contents(database)) == 3


KILLED = """
import os, signal, sys
from sqlalchemy import Engine, event
from modelwright.plugins.registries import SqlOptions
from modelwright.plugins.registries.sql import SqlRegistry

countdown = int(sys.argv[2])

def point(*_, **__):
    global countdown
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    countdown -= 1

registry = SqlRegistry(SqlOptions(url=sys.argv[1]))
registry.find()
sys.addaudithook(lambda name, _: point() if name in ("os.rename", "os.remove", "os.rmdir") else None)
event.listen(Engine, "commit", point)
print(registry.collect())
"""


@pytest.mark.long
def test_a_kill_at_each_point_leaves_living_versions_whole_and_the_rest_to_the_next(registry, database, folder):
    """Before every rename, removal and commit; what was set aside is freed, and counted, by the next collection."""
    living = registry.add(new_model("living"), folder)
    heavy = write_model(folder.parent / "heavy", b"x" * 1000)
    at, killed = 0, True
    while killed:
        registry.add(new_model(fingerprint=str(at)), heavy)
        registry.delete("math", at + 1)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, f"sqlite:///{database}", str(at)],
            timeout=60,
            capture_output=True,
            check=False,
        )
        killed = done.returncode == -9
        assert killed or done.returncode == 0, done.stderr
        assert registry.verify(living) == []
        assert registry._store.complete(living.digest, living.files)
        registry.collect()
        assert sorted(path.name for path in contents(database)) == sorted(file.sha256 for file in living.files)
        assert len(store(database)) == 6
        at += 1
    assert at > 5


# Verifying


def missing(path):
    path.unlink()
    return "is missing"


def short(path):
    path.chmod(0o644)
    path.write_bytes(b"wei")
    return "has 3 bytes, expected 7"


def flipped(path):
    path.chmod(0o644)
    path.write_bytes(b"weighty")
    return "is damaged: its sha256 is "


def folder_instead(path):
    path.unlink()
    path.mkdir()
    return "bytes, expected 7"


@pytest.mark.parametrize("damage", [missing, short, flipped, folder_instead])
def test_a_file_that_is_not_what_it_was_is_named(registry, database, folder, damage):
    """With the model's own name for it, where it is in the store, and what is wrong; the others are right."""
    (folder / "copy.bin.json").write_bytes(b"weights")
    added = registry.add(new_model(), folder)
    weights = next(file for file in added.files if file.path == "model.safetensors")
    place = database.parent / "files" / weights.sha256[:2] / weights.sha256
    reason = damage(place)
    lines = registry.verify(added)
    assert [line.partition(": ")[0] for line in lines] == ["copy.bin.json", "model.safetensors"]
    for line in lines:
        assert str(place) in line
        assert reason in line


@pytest.mark.parametrize("damage", [missing, short, flipped])
def test_a_damaged_file_comes_back_when_the_model_is_registered_again(registry, database, folder, damage):
    """The advice that the command line gives."""
    added = registry.add(new_model(), folder)
    place = database.parent / "files" / added.files[1].sha256[:2] / added.files[1].sha256
    damage(place)
    assert registry.add(new_model(), folder) == added
    assert registry.verify(added) == []


def test_an_altered_list_of_files_is_reported(registry, database, folder):
    """The digest is of the list: an editor of the database cannot change one without the other."""
    import sqlite3

    registry.add(new_model(), folder)
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM files WHERE path = 'config.json'")
    [line] = registry.verify(registry.get("math"))
    assert "the database was altered" in line


def test_a_store_of_another_user_is_collected_as_far_as_allowed(registry, database, folder, permissions_count):
    """What may not be removed is one line, and the models are whole."""
    registry.add(new_model(), folder)
    registry.delete("math", 1)
    places = [path for path in (database.parent / "files").iterdir() if path.is_dir()]
    for place in places:
        place.chmod(0o555)
    try:
        with pytest.raises(RegistryError, match="Permission denied"):
            registry.collect()
    finally:
        for place in places:
            place.chmod(0o755)


def test_a_store_that_was_removed_is_nothing_to_collect(registry, database, folder):
    """And verifying says what is gone."""
    added = registry.add(new_model(), folder)
    shutil.rmtree(database.parent / "files")
    assert registry.collect() == Collected(contents=0, size=0)
    assert len(registry.verify(added)) == 3
