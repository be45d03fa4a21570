"""Files: a kill at any moment leaves the old state or the new."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from modelwright.core.api import files

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from modelwright.core.api import files
target = Path(sys.argv[1])
for number in range(10**9):
    files.write_json(target / "file.json", {"number": number, "padding": "x" * 100_000})
    with files.writing_folder(target / f"folder-{number % 3}") as folder:
        for part in range(3):
            (folder / f"{part}").write_text(str(number))
    if number == 2:
        print("going", flush=True)
"""


@pytest.mark.parametrize("after", [0.0, 0.013, 0.027, 0.041])
def test_a_killed_writer_leaves_whole_files_and_folders(tmp_path, after):
    """SIGKILL, again and again, at moments that nobody chose."""
    with subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    assert len(files.read_json(tmp_path / "file.json")["padding"]) == 100_000
    for folder in tmp_path.glob("folder-*"):
        assert len({(folder / str(part)).read_text() for part in range(3)}) == 1
    files.remove_temporaries(tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_block_that_fails_changes_nothing(tmp_path):
    """And leaves no temporary file."""
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(TypeError), files.writing(tmp_path / "a") as file:
        file.write("text where bytes belong")
    with pytest.raises(FileNotFoundError), files.writing_folder(tmp_path / "d") as folder:
        (folder / "no" / "such").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    """Nothing of the old one stays in it."""
    for name in ("old", "new"):
        with files.writing_folder(tmp_path / "d") as folder:
            (folder / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["d", "d/new"]


def test_a_folders_digest_is_of_paths_and_contents(tmp_path):
    """Not of times or of the folder's own name."""
    digests = []
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "f").write_text(content)
        digests.append(files.manifest_digest(files.folder_manifest(tmp_path / name)))
    assert digests[0] == digests[1] != digests[2]
