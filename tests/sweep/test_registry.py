"""Bad registries, names and addresses: each gets one line, and what was there before is whole."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys

import pytest

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.cli import main
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry, resolve
from modelwright.core.testing.registry import new_model, write_model


def opened(place):
    return open_registry(f"sqlite:///{place}/registry.db", discover())


@pytest.fixture
def models(capsys, home):
    """Runs `modelwright models …` on a registry: (exit code, standard output, standard error)."""

    def run(command, *arguments, place=home):
        with pytest.raises(SystemExit) as end:
            main(["models", command, "--registry", f"sqlite:///{place}/registry.db", *map(str, arguments)])
        return (end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def one_line(models, home):
    """Runs a command that is refused: its one line without "error: "."""

    def run(*arguments, code=1, place=home):
        ended, out, err = models(*arguments, place=place)
        assert (ended, out, err.count("\n")) == (code, "", 1), err
        return err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def filled(home, tmp_path):
    """math@1 with the alias production; gives the home."""
    registry = opened(home)
    registry.add(new_model(), write_model(tmp_path / "trained"))
    registry.set_alias("production", "math", 1)
    return home


# Every command, on a registry that is none

EVERY = [
    ("list",),
    ("show", "math"),
    ("alias",),
    ("alias", "production", "math"),
    ("compare", "math@1", "math@2"),
    ("tag", "math", "a=b"),
    ("delete", "math", "--yes"),
    ("verify",),
    ("export", "--no-verify", "math", "out"),
    ("card", "math"),
]


def no_database(path):
    path.write_text("my notes, longer than a header of one hundred bytes " * 4)


def another_database(path):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (url)")


def a_folder(path):
    path.mkdir()


def newer(path):
    change(path, "UPDATE schema_version SET version = 99")


def older(path):
    change(path, "UPDATE schema_version SET version = 0")


def no_version(path):
    change(path, "DELETE FROM schema_version")


def a_table_less(path):
    change(path, "DROP TABLE tags")


def truncated(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def overwritten(path):
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xaa" * (len(data) - 4096))


def odd_rows(path):
    change(path, "UPDATE models SET config = '{'")


def odd_text(path):
    change(path, "UPDATE models SET base = CAST(x'ff' AS TEXT)")


def change(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


NONE_YET = (no_database, another_database, a_folder)
SPOILT = (newer, older, no_version, a_table_less, truncated, overwritten, odd_rows, odd_text)


@pytest.mark.parametrize("spoil", [*NONE_YET, *SPOILT], ids=lambda spoil: spoil.__name__)
def test_an_unsound_registry_is_one_line_for_every_command(tmp_path, home, monkeypatch, one_line, spoil, wording):
    """The line names the file and what to do, and the file stays as it is."""
    path = home / "registry.db"
    home.mkdir()
    if spoil in SPOILT:
        opened(home).add(new_model(), write_model(tmp_path / "trained"))
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    monkeypatch.chdir(tmp_path)
    lines = {one_line(*arguments) for arguments in EVERY}
    assert len(lines) == 1
    wording(lines.pop())
    assert (path.read_bytes() if path.is_file() else None) == before
    with pytest.raises(ModelwrightError) as caught:
        opened(home).add(new_model(), write_model(tmp_path / "again"))
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_registry_that_does_not_exist_reads_as_none_and_is_not_made(one_line, models, tmp_path, wording):
    """By no command that reads, nor by one that is refused."""
    place = tmp_path / "nowhere"
    wording(models("list", place=place)[1])
    for arguments in (
        ("show", "math"),
        ("tag", "math", "a=b"),
        ("delete", "math", "--yes"),
        ("export", "--no-verify", "math", "out"),
    ):
        wording(one_line(*arguments, place=place))
    assert not place.exists()
    assert not (tmp_path / "out").exists()


# Names


LONG = "m" * 300
NOT_UTF8 = os.fsdecode(b"ma\xffth=x")


def shown(text):
    """A parameter's id: what was typed, in ASCII."""
    return ascii(text).strip("'").replace(LONG, "long").replace("9" * 300, "nines").replace("k" * 201, "keys") or "none"


@pytest.mark.parametrize(
    "address",
    [
        *("", "math/1", "../math", "math@1/2", ".", "..", LONG, f"@{LONG}", f"math@{'9' * 300}"),
        *("math@1.0", "math@+1", "math@-1", "MATH", "mäth", "🙂", "ma\nth", "ma\x1b[2Jth", "@🙂", "@@production"),
        *("math@production", NOT_UTF8, "'; DROP TABLE models; --"),
    ],
    ids=shown,
)
def test_an_odd_address_is_one_line(filled, one_line, address, wording):
    """Anything that was typed or pasted; the model is there as before."""
    wording(one_line("show", "--", address, code=2), long=LONG, nines="9" * 300)
    assert opened(filled).get("math").aliases == ("production",)


def test_a_version_of_many_digits_is_not_found(filled, one_line, wording):
    """The longest number that may be a version."""
    wording(one_line("show", "math@999999999999999999"))


@pytest.mark.parametrize(
    "alias",
    ["a/b", "..", "", "A", "ä", "🙂", "3", LONG, "a b", "a\n", "a@1", NOT_UTF8, "-a", "@@a"],
    ids=shown,
)
def test_an_odd_alias_is_one_line(filled, one_line, alias, wording):
    """With what is expected; no alias is set."""
    wording(one_line("alias", "--", alias, "math", code=2), long=LONG[:199])
    assert opened(filled).get("math").aliases == ("production",)


@pytest.mark.parametrize(
    "tag", ["", "=", "=x", "x", "a\n=b", " =b", f"{'k' * 201}=v", NOT_UTF8, os.fsdecode(b"k=\xff")], ids=shown
)
def test_an_odd_tag_is_one_line(filled, one_line, tag, wording):
    """With what is expected; the tags are as before."""
    wording(one_line("tag", "math", "--", tag, code=2), keys="k" * 201)
    assert opened(filled).get("math").model.tags == new_model().tags


@pytest.mark.parametrize("value", ["", "=", "🙂", "x" * 100_000, "line\nline", "\x1b[2J", "'; DROP TABLE tags; --"])
def test_any_text_may_be_a_tags_value(filled, models, value):
    """And comes back as it is, in JSON; to people nothing of it commands the terminal."""
    code, out, _ = models("tag", "math", f"note={value}")
    assert code == 0
    assert "\x1b" not in out
    assert json.loads(models("tag", "math", "--json")[1])["tags"]["note"] == value


@pytest.mark.parametrize("text", ["\0", "\ud800", "a\0b"])
def test_text_that_no_database_keeps_is_refused_by_the_registry(filled, tmp_path, text):
    """Through Python, where it can be said: one line, and nothing is added."""
    from attrs import evolve

    registry, folder = opened(filled), tmp_path / "trained"
    for field in ("fingerprint", "base", "parent", "code_version"):
        with pytest.raises(ModelwrightError, match=f"the model's {field} cannot be stored: expected text"):
            registry.add(evolve(new_model(), **{"fingerprint": "next", field: text}), folder)
    for field in ("data", "environment", "training", "config"):
        if "\0" in text:
            continue  # JSON has a way to write it
        with pytest.raises(ModelwrightError, match=f"the model's {field} cannot be stored"):
            registry.add(evolve(new_model(fingerprint="next"), **{field: {"x": text}}), folder)
    for ask in (
        lambda: registry.get(text),
        lambda: registry.resolve(text),
        lambda: registry.delete(text, 1),
        lambda: registry.set_tags(text, 1, {"a": "b"}),
        lambda: registry.set_alias("a", text, 1),
        lambda: registry.set_alias(text, "math", 1),
        lambda: registry.add_metrics("math", 1, text, {"m": _figure()}),
        lambda: registry.add_metrics("math", 1, "suite", {text: _figure()}),
        lambda: registry.set_tags("math", 1, {text: "b"}),
        lambda: registry.set_tags("math", 1, {"a": text}),
        lambda: resolve(registry, text),
    ):
        with pytest.raises(ModelwrightError) as caught:
            ask()
        assert str(caught.value).isprintable()
    assert registry.find(text) == []
    assert [event.kind for event in registry.events()] == ["added", "alias"]


def _figure():
    from modelwright.core.api.records import wilson

    return wilson(0.5, 10)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("registry.db", 2),
        ("mysql://host/db", 2),
        ("http://host/db", 2),
        ("sqlite://host/registry.db", 2),
        ("sqlite:///", 2),
        (f"sqlite:///{LONG}", 1),
        ("sqlite:////dev/null/registry.db", 1),
        ("sqlite:////dev/full", 1),
    ],
    ids=lambda value: value.replace(LONG, "long") if isinstance(value, str) else str(value),
)
def test_an_odd_url_is_one_line(capsys, tmp_path, monkeypatch, url, code, wording):
    """With what is expected."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["models", "list", "--registry", url])
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (code, "", 1)
    wording(err, long=LONG)


def test_an_empty_url_is_the_default(capsys, tmp_path, monkeypatch):
    """As if none was given."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["models", "list", "--registry", ""])
    assert (end.value.code, capsys.readouterr().err) == (0, "")


# Disks


@pytest.fixture
def disk(tmp_path, mounted):
    """A disk of one megabyte."""
    return mounted(tmp_path / "disk", "-o", "size=1m")


def fill(disk):
    """Leave not a byte free; gives the file that takes them."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def whole(registry, expected):
    assert registry.find() == expected
    for version in expected:
        assert registry.verify(version) == []
        assert (registry.folder(version) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        *("tag math a=b", "alias staging math", "delete math@2 --yes", "import OUT --name guest"),
        *(f"export --no-verify math DISK/out{suffix}" for suffix in ("", ".tar", ".tar.gz")),
        "card math --output DISK/card.md",
    ],
)
def test_on_a_full_disk_nothing_is_lost_and_the_same_command_works_when_there_is_room(
    disk, models, one_line, tmp_path, monkeypatch, arguments, wording
):
    """One line; no half of anything is left."""
    home, registry = disk / "home", opened(disk / "home")
    for fingerprint in ("a", "b"):
        registry.add(
            new_model(fingerprint=fingerprint), write_model(tmp_path / fingerprint, fingerprint.encode() * 9999)
        )
    assert models("export", "--no-verify", "math@1", tmp_path / "out", place=home)[0] == 0
    before = registry.find()
    arguments = [each.replace("DISK", str(disk)).replace("OUT", str(tmp_path / "out")) for each in arguments.split()]
    ballast = fill(disk)
    monkeypatch.setenv("MODELWRIGHT_HOME", str(home))
    line = one_line(*arguments, place=home)
    assert "full" in line or "No space left on device" in line
    wording(re.sub(r"import-\w+|files/[0-9a-f/]+\S*", "…", line))
    whole(registry, before)
    assert not list(disk.glob("out*"))
    assert not list(disk.rglob(".tmp-*"))
    ballast.unlink()
    assert models(*arguments, place=home)[0] == 0
    whole(registry, registry.find())


def test_registering_on_a_full_disk_is_one_line_and_then_works(disk, tmp_path):
    """Whether there is no room for the contents, or only for the row."""
    registry = opened(disk / "home")
    first = registry.add(new_model(), write_model(tmp_path / "first"))
    large = write_model(tmp_path / "large", os.urandom(400_000))
    ballast = fill(disk)
    for folder in (large, tmp_path / "first"):
        with pytest.raises(ModelwrightError) as caught:
            registry.add(new_model(fingerprint="next"), folder)
        assert "full" in str(caught.value) or "No space left on device" in str(caught.value)
        whole(registry, [first])
    ballast.unlink()
    whole(registry, [first, registry.add(new_model(fingerprint="next"), large)])


def test_a_full_disk_can_be_cleared(disk, models, tmp_path):
    """Freeing what was deleted needs no room of its own."""
    registry = opened(disk / "home")
    first = registry.add(new_model(), write_model(tmp_path / "first"))
    registry.add(new_model(fingerprint="large"), write_model(tmp_path / "large", os.urandom(300_000)))
    registry.delete("math", 2)
    fill(disk)
    code, out, err = models("gc", place=disk / "home")
    assert (code, err) == (0, "")
    assert out.startswith("1 file (300.0 kB) freed in ")
    whole(registry, [first])


def test_on_a_read_only_disk_reading_works_and_the_rest_is_one_line(tmp_path, mounted, models, one_line, wording):
    """A colleague's registry, or a backup."""
    disk = mounted(tmp_path / "disk")
    registry = opened(disk / "home")
    added = registry.add(new_model(), write_model(tmp_path / "trained"))
    home = disk / "home"
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    whole(registry, [added])
    for arguments in (("list",), ("show", "math"), ("verify",), ("card", "math"), ("gc", "--dry-run"), ("alias",)):
        assert models(*arguments, place=home)[0] == 0
    assert models("export", "--no-verify", "math", tmp_path / "out", place=home)[0] == 0
    for arguments in (("tag", "math", "a=b"), ("alias", "a", "math"), ("delete", "math", "--yes")):
        wording(one_line(*arguments, place=home))
    wording(one_line("export", "--no-verify", "math", disk / "out", place=home, code=2))
    with pytest.raises(ModelwrightError, match="Read-only file system"):
        registry.add(new_model(fingerprint="next"), write_model(tmp_path / "next", b"next"))
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert models("tag", "math", "a=b", place=home)[0] == 0


def test_a_locked_registry_is_one_line_after_a_while_and_works_when_it_is_free(filled, monkeypatch):
    """Another process writes; the wait is shortened here, from half a minute."""
    from modelwright.plugins.registries import sqlite

    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.1)
    registry = opened(filled)
    with contextlib.closing(sqlite3.connect(filled / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert registry.get("math").aliases == ("production",)
        for change in (
            lambda: registry.set_tags("math", 1, {"a": "b"}),
            lambda: registry.set_alias("staging", "math", 1),
            registry.collect,
            lambda: registry.delete("math", 1),
        ):
            with pytest.raises(ModelwrightError, match=r"registry\.db is locked"):
                change()
        other.execute("ROLLBACK")
    assert registry.set_tags("math", 1, {"a": "b"}).model.tags["a"] == "b"


def test_two_who_register_at_once_both_do(home, tmp_path):
    """In a registry that neither of them found there."""
    program = """
import sys
from pathlib import Path
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.testing.registry import new_model
registry = open_registry(sys.argv[1], discover())
sys.stdin.readline()
print(registry.add(new_model(fingerprint=sys.argv[2]), Path(sys.argv[3])).version)
"""
    folder = write_model(tmp_path / "trained")
    command = [sys.executable, "-c", program, f"sqlite:///{home}/registry.db"]
    writers = [
        subprocess.Popen([*command, each, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for each in ("a", "b")
    ]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert sorted(writer.communicate(timeout=60)[0] for writer in writers) == ["1\n", "2\n"]
    whole(opened(home), opened(home).find())


def test_a_store_without_its_files_is_one_line_with_what_to_do(filled, one_line, wording):
    """The database was copied, and its folder `files` was not."""
    shutil.rmtree(filled / "files")
    wording(one_line("export", "--no-verify", "math", "out"))
