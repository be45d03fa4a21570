"""`modelwright doctor` as a table, and errors of a wrong command line."""

from __future__ import annotations

from importlib import metadata

import pytest
from tiny_run import tiny_run

# One process asks each package once.
pytestmark = pytest.mark.xdist_group("doctor")


def test_the_table_says_what_there_is_and_what_is_missing(command, probed_once, tmp_path):
    """A line for each thing; exit code 1, because something is missing."""
    (tmp_path / "run.toml").write_text(tiny_run("data.sources = [{ path = 'absent.jsonl' }]"))
    done = command("doctor", "run.toml")
    assert done.returncode == 1
    assert f"torch {metadata.version('torch')}" in done.stdout
    for row in ("Python", "CPUs", "memory", "torch", "DeepSpeed", "Slurm", "home", "hub"):
        assert f"\n {row} " in done.stdout
    after = done.stdout[done.stdout.index(" missing ") :]
    assert "tiny" in after
    assert "absent.jsonl" in after


def test_a_run_that_lacks_nothing_is_reported_as_ready(command, probed_once, tmp_path):
    """With exit code 0."""
    (tmp_path / "run.toml").write_text(tiny_run("[variants.a]\n[variants.b]"))
    done = command("doctor", "run.toml", "--variant", "b")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "Nothing is missing for tiny-b."


def test_options_of_a_run_need_one(here, wording):
    """Nothing is looked at."""
    code, error = here("doctor", "--set", "seed=1")
    assert code == 2
    wording(error.rstrip("\n"))


@pytest.mark.parametrize(
    "arguments", [("--device", "24GB"), ("absent.toml", "--device", "big")], ids=["no run", "no size"]
)
def test_a_device_is_checked_before_anything_is_looked_up(here, arguments, wording):
    """It needs a run, and a size."""
    code, error = here("doctor", *arguments)
    assert code == 2
    wording(error.rstrip("\n"))


def test_a_wrong_run_file_is_reported_as_by_every_command(command, tmp_path):
    """With exit code 2: what it would miss is not known."""
    (tmp_path / "run.toml").write_text(tiny_run("train.nonsense = 1"))
    done = command("doctor", "run.toml", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "[train] nonsense: unknown key" in done.stderr
