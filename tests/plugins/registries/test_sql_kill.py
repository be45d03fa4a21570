"""SIGKILL in the middle of `add`: nothing or the whole version, and the next `add` works."""

import json
import subprocess
import sys

import pytest

# Forks one process for each kill, so that each starts with everything imported. A point is anything that changes the
# disk: every audited call (an open for writing, rename, mkdir, symlink, …) and SQL statement, before it is executed.
DRIVER = """
import hashlib, json, os, random, shutil, signal, sys, time
from pathlib import Path

from sqlalchemy import Engine, event

from modelwright.core.testing.registry import new_model, write_model
from modelwright.plugins.registries import SqlOptions
from modelwright.plugins.registries.sql import SqlRegistry

how, place = sys.argv[1], Path(sys.argv[2])
folder = write_model(place / "trained", bytes(range(256)) * 512)
AUDITED = ("open", "os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "sqlite3.connect")
countdown = -1

def point(*_, **__):
    global countdown
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    countdown -= 1

def audit(name, arguments):
    if countdown >= 0 and name in AUDITED and (name != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        point()

def execute(connection, cursor, statement, *_):
    if not statement.startswith(("SELECT", "PRAGMA")):
        point()

sys.addaudithook(audit)
event.listen(Engine, "before_cursor_execute", execute)
event.listen(Engine, "commit", point)

def connect(home):
    return SqlRegistry(SqlOptions(url=f"sqlite:///{home}/registry.db"))

def add(home):
    return connect(home).add(new_model(), folder)

def killed_child(work, *, delay=None):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), status
    return os.WIFSIGNALED(status)

def whole(registry, version):
    tree = registry.folder(version)
    for file in version.files:
        data = (tree / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256), file
    assert version.model.tags and len(version.files) == 3

def check(home):
    registry = connect(home)
    found = registry.find()
    assert len(found) <= 1, found
    for version in found:
        whole(registry, version)
    events = [event.kind for event in registry.events()]
    assert events == ["added"] * len(found), events
    again = registry.add(new_model(), folder)
    assert again.version == 1
    whole(registry, again)
    assert len(registry.find()) == 1
    shutil.rmtree(home)
    return len(found)

seen = {"kills": 0, "nothing": 0, "whole": 0}

def count(killed, home):
    seen["kills"] += killed
    seen["whole" if check(home) else "nothing"] += 1

if how == "each":
    at, killed = 0, True
    while killed:
        home = place / f"home-{at}"
        def work():
            global countdown
            countdown = at
            add(home)
        killed = killed_child(work)
        count(killed, home)
        at += 1
else:
    started = time.monotonic()
    add(place / "timed")
    duration = time.monotonic() - started
    draw = random.Random(17)
    for at in range(25):
        home = place / f"home-{at}"
        count(killed_child(lambda: add(home), delay=draw.uniform(0, 1.5 * duration)), home)
print(json.dumps(seen))
"""


def kill(how, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, how, str(tmp_path)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_a_kill_at_each_point_leaves_nothing_or_the_whole_version(tmp_path):
    """Before every file that is opened, renamed or linked and every statement, up to a run that none interrupts."""
    seen = kill("each", tmp_path)
    assert seen["kills"] > 30
    assert seen["nothing"] > 30
    assert seen["whole"] >= 1


@pytest.mark.long
def test_a_kill_at_any_time_leaves_nothing_or_the_whole_version(tmp_path):
    """At random times, so that the inside of SQLite's commit is met as well."""
    assert kill("random", tmp_path)["kills"] >= 10


@pytest.mark.parametrize("statement", ["INSERT INTO events", "INSERT INTO tags"])
def test_a_kill_inside_the_transaction_is_rolled_back(tmp_path, statement):
    """A journal that a killed writer left is played back by the next one who opens the registry."""
    program = f"""
import os, signal, sys
from pathlib import Path
from sqlalchemy import Engine, event
from modelwright.core.testing.registry import new_model, write_model
from modelwright.plugins.registries import SqlOptions
from modelwright.plugins.registries.sql import SqlRegistry

place = Path({str(tmp_path)!r})
registry = SqlRegistry(SqlOptions(url=f"sqlite:///{{place}}/registry.db"))
registry.add(new_model(), write_model(place / "a"))

@event.listens_for(Engine, "after_cursor_execute")
def spill(connection, cursor, text, *_):
    if text.startswith({statement!r}):
        # Makes SQLite write its pages and the journal to disk, as a large transaction does by itself.
        cursor.execute("PRAGMA cache_size = 1")
        cursor.execute("PRAGMA cache_spill = 1")
        cursor.execute("CREATE TABLE large (text)")
        for _ in range(200):
            cursor.execute("INSERT INTO large VALUES (hex(randomblob(4000)))")
        assert Path(f"{{place}}/registry.db-journal").stat().st_size
        os.kill(os.getpid(), signal.SIGKILL)

registry.add(new_model(fingerprint="b"), write_model(place / "b", b"other"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "registry.db-journal").stat().st_size > 0
    from modelwright.plugins.registries import SqlOptions
    from modelwright.plugins.registries.sql import SqlRegistry

    registry = SqlRegistry(SqlOptions(url=f"sqlite:///{tmp_path}/registry.db"))
    assert [version.address for version in registry.find()] == ["math@1"]
    assert not (tmp_path / "registry.db-journal").exists()
    assert registry.add(registry.get("math").model, tmp_path / "a").version == 1
