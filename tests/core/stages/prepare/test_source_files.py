"""Which files a source is made of: links, special files, odd names; what cannot be read is refused unopened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelwright.core.api.errors import UsageError
from modelwright.core.config.data import SourceConfig
from modelwright.core.stages.prepare.sources import read_source, source_digests, source_files

ROW = '{"a": 1}\n'


def _names(path):
    return [file.name for file in source_files(SourceConfig(path=str(path)))]


def _refusal(path):
    with pytest.raises(UsageError) as caught:
        source_files(SourceConfig(path=str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_gives_every_kind_of_file_it_holds_in_order(tmp_path):
    """Not its README, hidden files, or folders in it."""
    for name in (
        "b.csv",
        "a.jsonl",
        "C.JSON.GZ",
        "d.parquet",
        "README.md",
        "._a.jsonl",
        ".a.jsonl.swp",
        "x.parquet.gz",
    ):
        (tmp_path / name).write_text(ROW)
    (tmp_path / "sub").mkdir()
    assert _names(tmp_path) == ["C.JSON.GZ", "a.jsonl", "b.csv", "d.parquet"]
    assert _names(tmp_path / "*.[jc]*") == ["a.jsonl", "b.csv"]


def test_a_folder_of_parts_that_has_a_files_name_is_read_as_a_folder(wording, tmp_path):
    """As Spark writes them."""
    folder = tmp_path / "train.jsonl"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    (folder / "part-0.jsonl").write_text(ROW)
    assert _names(folder) == ["part-0.jsonl"]
    assert _names(tmp_path / "**" / "*.jsonl") == ["part-0.jsonl"]
    for path in (tmp_path, tmp_path / "*"):
        wording(_refusal(path))


@pytest.mark.parametrize(
    "name",
    ["a b.jsonl", "a[1].jsonl", "*.jsonl", "ü–\u2028.jsonl", "a\nb.jsonl", "-.jsonl", "x" * 244 + ".jsonl"],
    ids=lambda name: ascii(name[:20]),
)
def test_odd_names_are_read_and_shown_in_one_line(wording, tmp_path, name):
    """By themselves and in their folder; each row says where it came from."""
    (tmp_path / name).write_text(ROW)
    for path in (tmp_path / name, tmp_path):
        [row] = read_source(SourceConfig(path=str(path)), seed=0)
        assert row.value == {"a": 1}
        assert len(row.file.splitlines()) == 1
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nowhere")
    wording(_refusal(tmp_path))


def test_a_name_that_is_not_utf8_is_refused(wording, tmp_path):
    """It could be written to no report."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).write_text(ROW)
    wording(_refusal(tmp_path))


def test_a_name_longer_than_names_can_be_is_refused(wording, tmp_path):
    """Not a traceback."""
    wording(_refusal(tmp_path / ("x" * 300 + ".jsonl")))


def test_links_are_followed_and_a_file_that_is_found_twice_is_read_once(tmp_path):
    """A loop of folders would give its files forty times."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(ROW)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "same.jsonl").symlink_to("a.jsonl")
    (tmp_path / "link.jsonl").symlink_to("data/a.jsonl")
    assert _names(tmp_path / "data") == ["a.jsonl"]
    assert _names(tmp_path / "**" / "*.jsonl") == ["a.jsonl"]
    assert _names(tmp_path / "link.jsonl") == ["link.jsonl"]


def test_broken_links_and_loops_of_links_are_named(wording, tmp_path):
    """Alone, in a folder and in a pattern."""
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    for path in (tmp_path / "gone.jsonl", tmp_path, tmp_path / "*.jsonl"):
        wording(_refusal(path))
    (tmp_path / "gone.jsonl").unlink()
    (tmp_path / "x.jsonl").symlink_to("y.jsonl")
    (tmp_path / "y.jsonl").symlink_to("x.jsonl")
    for path in (tmp_path / "x.jsonl", tmp_path):
        wording(_refusal(path))


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("/dev/null")],
    ids=["FIFO", "/dev/zero", "/dev/null"],
)
def test_special_files_are_refused_without_being_opened(wording, tmp_path, make):
    """A FIFO would wait for ever and /dev/zero would never end."""
    make(tmp_path / "a.jsonl")
    for path in (tmp_path / "a.jsonl", tmp_path):
        wording(_refusal(path))


def test_a_file_in_place_of_a_folder_is_refused(wording, tmp_path):
    """The path leads nowhere."""
    (tmp_path / "a.jsonl").write_text(ROW)
    wording(_refusal(tmp_path / "a.jsonl" / "b.jsonl"))
    wording(_refusal(tmp_path / "a.jsonl" / "*"))


def test_a_folder_without_data_says_how_the_folders_in_it_are_read(wording, tmp_path):
    """They are not looked into unasked."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").touch()
    wording(_refusal(tmp_path))
    wording(_refusal(tmp_path / "data" / "a.xlsx"))


def test_what_may_not_be_read_is_refused_before_anything_starts(wording, tmp_path, permissions_count):
    """A file and a folder."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(ROW)
    (tmp_path / "data" / "a.jsonl").chmod(0)
    wording(_refusal(tmp_path / "data"))
    (tmp_path / "data").chmod(0)
    wording(_refusal(tmp_path / "data"))
    (tmp_path / "data").chmod(0o700)


def test_digests_name_every_file(tmp_path):
    """Of the bytes on disk, packed as they are."""
    for name in ("a.csv", "b.jsonl.gz", "c.parquet"):
        (tmp_path / name).write_bytes(b"x")
    assert [name for name, _ in source_digests(SourceConfig(path=str(tmp_path)), 0)] == [
        "a.csv",
        "b.jsonl.gz",
        "c.parquet",
    ]
