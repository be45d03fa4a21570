import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, contextmanager

import pytest

from modelwright.core.api.errors import ModelNotFoundError, RegistryError, UsageError
from modelwright.core.testing.registry import new_model, write_model
from modelwright.plugins.registries import SqlOptions, sqlite
from modelwright.plugins.registries.sql import SqlRegistry


def connect(path):
    return SqlRegistry(SqlOptions(url=f"sqlite:///{path}"))


@pytest.fixture
def database(tmp_path):
    return tmp_path / "some" / "home" / "registry.db"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "trained")


@pytest.fixture
def filled(database, folder):
    connect(database).add(new_model(), folder)
    return database


def execute(path, statement):
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


# URLs


def test_three_slashes_are_relative_to_the_working_directory_and_four_absolute(tmp_path, folder, monkeypatch):
    """A registry opened by a relative URL stays where it was when the process changes its directory."""
    monkeypatch.chdir(tmp_path)
    registry = connect("rel.db")
    monkeypatch.chdir("/")
    registry.add(new_model(), folder)
    assert connect(tmp_path / "rel.db").get("math").version == 1
    assert (tmp_path / "files").is_dir()


def test_a_path_is_taken_literally(tmp_path, folder):
    """Spaces, percent signs, question marks and letters beyond ASCII mean themselves."""
    path = tmp_path / "my models, 100%20?mode=ro#ü" / "registry.db"
    connect(path).add(new_model(), folder)
    assert path.is_file()
    assert connect(path).get("math").version == 1


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:////", "sqlite:///folder/", "sqlite:///:memory:", "sqlite://host/a.db"]
)
def test_a_url_that_names_no_file_is_refused_with_the_expected_forms(url):
    """Before anything is opened."""
    with pytest.raises(UsageError, match=r"sqlite:////absolute/path/registry\.db"):
        SqlRegistry(SqlOptions(url=url))


# What reading and writing leave behind


def test_reading_creates_nothing(database, tmp_path):
    """Neither a look at a registry that does not exist nor a refused change leaves a file or folder."""
    registry = connect(database)
    assert registry.find() == []
    assert registry.events() == []
    for ask in (
        lambda: registry.get("math"),
        lambda: registry.resolve("production"),
        lambda: registry.set_alias("production", "math", 1),
        lambda: registry.delete("math", 1),
        lambda: registry.add_metrics("math", 1, "suite", {}),
    ):
        with pytest.raises(ModelNotFoundError):
            ask()
    assert not (tmp_path / "some").exists()


def test_an_empty_file_is_an_empty_registry(database, folder):
    """Which is what a process killed at its first write can leave."""
    database.parent.mkdir(parents=True)
    database.touch()
    assert connect(database).find() == []
    assert connect(database).add(new_model(), folder).version == 1


def test_the_database_suits_shared_file_systems(filled):
    """No write-ahead log: it needs shared memory, which clusters' file systems do not have."""
    assert execute(filled, "PRAGMA journal_mode") == [("delete",)]
    assert sorted(path.name for path in filled.parent.iterdir()) == ["files", "registry.db"]


def test_rows_refer_to_models_that_exist(filled):
    """Foreign keys are enforced on the registry's own connections, and hold."""
    with connect(filled)._database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    assert execute(filled, "PRAGMA foreign_key_check") == []


def test_a_registry_may_be_moved(filled, tmp_path):
    """Database and files together, as one folder."""
    moved = filled.parent.rename(tmp_path / "elsewhere")
    registry = connect(moved / "registry.db")
    assert (registry.folder(registry.get("math")) / "model.safetensors").read_bytes() == b"weights"


# Files that are not a registry, or not ours to use


@contextmanager
def refused(*expected):
    """One line, which names the database and the problem."""
    with pytest.raises(RegistryError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert str(part) in message


@pytest.fixture(params=["reading", "writing"])
def use(request, folder):
    """Both ways to use a registry."""
    if request.param == "reading":
        return lambda path: connect(path).find()
    return lambda path: connect(path).add(new_model(fingerprint="next"), folder)


def test_a_newer_schema_asks_for_an_upgrade(filled, use):
    """Not misread, and not written to."""
    execute(filled, "UPDATE schema_version SET version = 99")
    with refused(filled, "newer", "99", "upgrade"):
        use(filled)


def test_a_file_that_is_not_a_database_is_left_alone(tmp_path, use):
    """A typing mistake in a URL does not cost a file."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes, longer than a header of one hundred bytes " * 4)
    with refused(path, "not an SQLite database"):
        use(path)
    assert path.read_text().startswith("my notes")


def test_a_database_of_another_program_is_left_alone(tmp_path, use):
    """Its tables are named, so that one sees whose it is."""
    path = tmp_path / "other.db"
    execute(path, "CREATE TABLE bookmarks (url)")
    with refused(path, "not a registry", "bookmarks"):
        use(path)
    assert execute(path, "SELECT name FROM sqlite_master") == [("bookmarks",)]


def test_a_folder_in_its_place_is_named(tmp_path, use):
    """The registry's URL names a file."""
    with refused(tmp_path, "is a folder"):
        use(tmp_path)


def test_a_file_in_a_folders_place_is_named(tmp_path, folder):
    """Where a parent of the database is a file, nothing can be added."""
    (tmp_path / "blocked").write_text("")
    with refused(tmp_path / "blocked", "cannot be used"):
        connect(tmp_path / "blocked" / "home" / "registry.db").add(new_model(), folder)


def test_a_damaged_database_is_named(filled):
    """Any damage by a disk is one line."""
    data = bytearray(filled.read_bytes())
    data[1024:] = b"\xaa" * (len(data) - 1024)
    filled.write_bytes(data)
    with refused(filled):
        connect(filled).find()


def test_a_locked_database_is_waited_for_and_then_named(filled, folder, monkeypatch):
    """Another process's transaction ends soon, or the error gives the reason."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.1)
    with closing(sqlite3.connect(filled, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with refused(filled, "locked"):
            connect(filled).find()
        other.execute("ROLLBACK")
    assert connect(filled).add(new_model(fingerprint="next"), folder).version == 2


def test_a_read_only_registry_reads_and_says_that_it_is_read_only(tmp_path, permissions_count):
    """A colleague's registry: models load, changes are refused in one line."""
    path = tmp_path / "home" / "registry.db"
    added = connect(path).add(new_model(), write_model(tmp_path / "trained"))
    places = [path, *(place for place in [path.parent, *path.parent.rglob("*")] if place.is_dir())]
    modes = {place: stat.S_IMODE(place.stat().st_mode) for place in places}
    for place, mode in modes.items():
        place.chmod(mode & ~0o222)
    try:
        registry = connect(path)
        assert registry.find() == [added]
        assert (registry.folder(added) / "model.safetensors").read_bytes() == b"weights"
        with refused(path, "read-only"):
            registry.set_alias("production", "math", 1)
        with refused(path):
            registry.add(new_model(fingerprint="next"), write_model(tmp_path / "next", b"other"))
        path.chmod(0o644)
        with refused(path):
            registry.set_alias("production", "math", 1)
    finally:
        for place, mode in modes.items():
            place.chmod(mode)


def test_an_unreadable_registry_is_named(tmp_path, permissions_count):
    """Permissions are the reason that the error gives."""
    path = tmp_path / "registry.db"
    connect(path).add(new_model(), write_model(tmp_path / "trained"))
    path.chmod(0)
    with refused(path, "cannot be opened"):
        connect(path).find()


# Several processes

ADD_SOME = """
import sys
from pathlib import Path
from modelwright.core.testing.registry import new_model
from modelwright.plugins.registries import SqlOptions
from modelwright.plugins.registries.sql import SqlRegistry

url, folder, writer, shared = sys.argv[1:]
registry = SqlRegistry(SqlOptions(url=url))
sys.stdin.readline()
for number in range(int(shared)):
    print(registry.add(new_model(fingerprint=f"{writer}-{number}"), Path(folder)).version)
    registry.add(new_model("together", fingerprint=str(number)), Path(folder))
"""


def test_processes_that_add_at_once_leave_no_gap(database, folder):
    """Versions are 1 to n with several writers, and a model that all of them add exists once."""
    arguments = [sys.executable, "-c", ADD_SOME, f"sqlite:///{database}", str(folder)]
    writers = [
        subprocess.Popen([*arguments, str(writer), "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for writer in range(4)
    ]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    printed = [int(line) for writer in writers for line in writer.communicate(timeout=120)[0].split()]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert sorted(printed) == list(range(1, 21))
    registry = connect(database)
    assert [version.version for version in registry.find("math")] == list(range(1, 21))
    assert [version.version for version in registry.find("together")] == list(range(1, 6))
    assert len(registry.events()) == 25


def test_registering_a_model_again_brings_back_what_the_store_has_lost(tmp_path):
    """The advice of the error that names a lost file holds; another model under its name is refused."""
    from modelwright import NewModel, RegistryError
    from modelwright.core.plugins import discover
    from modelwright.core.registry import open_registry

    registry = open_registry(f"sqlite:///{tmp_path / 'registry.db'}", discover())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model = NewModel(name="m", fingerprint="f")
    added = registry.add(model, folder)
    for content in (tmp_path / "files").glob("??/*"):
        content.unlink()
    with pytest.raises(RegistryError, match="register the same model again"):
        registry.folder(added)
    (folder / "config.json").write_text("[]")
    with pytest.raises(RegistryError, match="does not hold the same model"):
        registry.add(model, folder)
    (folder / "config.json").write_text("{}")
    assert registry.add(model, folder) == added
    assert (registry.folder(added) / "config.json").read_text() == "{}"
