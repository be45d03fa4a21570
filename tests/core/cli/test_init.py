"""`modelwright init`: a folder to begin with, that works as it is."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from modelwright.core.config import read_run
from modelwright.core.runner import check, open_run

FILES = {"run.toml", "data/train.jsonl", "data/test.jsonl"}


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_two_commands_give_a_trained_evaluated_and_promoted_model(modelwright, tmp_path):
    """What it prints next is what works next."""
    done = modelwright("init", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "modelwright run demo/run.toml" in done.stdout
    assert files_of(tmp_path / "demo") == FILES
    done = modelwright("run", "demo/run.toml")
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(modelwright("models", "list", "--json").stdout)
    assert (model["name"], model["aliases"]) == ("first-model", ["assistant"])
    assert model["metrics"]["test"]["math_accuracy"]["value"] >= 0.5


@pytest.mark.parametrize("format_name", ["math", "reasoning", "general"])
def test_every_format_has_a_sample_that_can_be_trained_on(modelwright, tmp_path, format_name):
    """A few hundred rows, none of the test's among the training's; and a file that says what each key does."""
    done = modelwright("init", "--format", format_name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote data/train.jsonl" in done.stdout
    rows = {
        split: (tmp_path / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        for split in ("train", "test")
    }
    assert (len(rows["train"]), len(rows["test"])) == (600, 60)
    assert not set(rows["train"]) & set(rows["test"])
    read = read_run(tmp_path / "run.toml")
    (config,) = read.configs
    assert config.data.format == format_name
    check([open_run(config, read.plugins)])  # its test set is read, and its metric is there
    done = modelwright("prepare", "run.toml")
    assert done.returncode == 0, done.stderr
    assert "600 rows for training" in done.stderr
    assert "rejected" not in done.stderr


def test_its_comments_are_right(modelwright, tmp_path):
    """The commented variants and options work as they are."""
    assert modelwright("init").returncode == 0
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    for line in ("[variants.short]", "train = { max_steps = 50 }", "[variants.long]", "train = { max_steps = 1000 }"):
        assert f"# {line}\n" in text
        text = text.replace(f"# {line}\n", f"{line}\n")
    (tmp_path / "run.toml").write_text(text.replace("# limit = 1000", "limit = 1000"), encoding="utf-8")
    names = {one.name: one.train.max_steps for one in read_run(tmp_path / "run.toml").configs}
    assert names == {"first-model-short": 50, "first-model-long": 1000}


def test_nothing_is_overwritten(wording, modelwright, tmp_path):
    """What is there is named, and nothing else is written; other files do not matter."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("mine")
    (tmp_path / "run.toml").symlink_to("nowhere")
    done = modelwright("init")
    assert (done.returncode, done.stdout) == (2, "")
    wording(done.stderr.removesuffix("\n"))
    assert (tmp_path / "data" / "train.jsonl").read_text() == "mine"
    assert not (tmp_path / "data" / "test.jsonl").exists()
    (tmp_path / "data" / "train.jsonl").unlink()
    (tmp_path / "run.toml").unlink()
    (tmp_path / "data" / "other.txt").write_text("mine")
    assert modelwright("init").returncode == 0
    assert (tmp_path / "data" / "other.txt").read_text() == "mine"
    wording(modelwright("init").stderr.removesuffix("\n"))


def test_a_file_instead_of_a_folder(wording, modelwright, tmp_path):
    """One line each, and nothing is left."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "data").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for folder in ("file", "file/inner", "link", "loop", "n" * 300, "", "."):
        done = modelwright("init", folder)
        assert (done.returncode, done.stdout) == (2, "")
        wording(done.stderr.removesuffix("\n"))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "data", "link", "loop"}


def test_a_folder_that_may_not_be_written_to(wording, here, tmp_path, monkeypatch, permissions_count):
    """Known before anything is written."""
    (tmp_path / "locked").mkdir(mode=0o555)
    monkeypatch.chdir(tmp_path)
    code, error = here("init", "locked")
    assert code == 2
    wording(error.removesuffix("\n"))


def test_a_disk_that_is_full_in_the_middle_leaves_nothing(wording, modelwright, tmp_path):
    """Files written before the one that failed go again: here a size limit that run.toml alone keeps."""
    (tmp_path / "there").mkdir()
    for folder in ("there", "new/er"):

        def limited():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        done = modelwright("init", folder, preexec_fn=limited)
        assert done.returncode == 1
        wording(done.stderr.removesuffix("\n"))
        assert files_of(tmp_path) == set()
    assert list((tmp_path / "there").iterdir()) == []


KILLED = """
import os, signal, sys
from modelwright.core.cli import main
calls, real = [0], os.fsync
def fsync(descriptor):
    calls[0] += 1
    if calls[0] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
main(["init", "new"])
"""


@pytest.mark.long
def test_a_kill_leaves_no_folder_or_all_of_it(tmp_path):
    """Wherever the kill comes: what is not finished has a temporary name."""
    for number in range(1, 99):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(number)], cwd=tmp_path, capture_output=True, check=False
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if (tmp_path / "new").exists():
            assert files_of(tmp_path / "new") == FILES
            shutil.rmtree(tmp_path / "new")
    assert number > 5, "it was killed in several places"
    assert files_of(tmp_path / "new") == FILES


def test_a_format_that_it_does_not_know(modelwright):
    """The three are named."""
    done = modelwright("init", "--format", "maths")
    assert done.returncode == 2
    assert "'maths' is not one of 'math', 'reasoning', 'general'" in done.stderr
