"""`modelwright doctor` as a table, and errors of a wrong command line."""

from __future__ import annotations

from importlib import metadata

RUN = """
name = "tiny"
[model.scratch]
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
[train]
max_steps = 1
"""


def test_the_table_says_what_there_is_and_what_is_missing(modelwright, tmp_path):
    """A line for each thing; exit code 1, because something is missing."""
    (tmp_path / "run.toml").write_text(RUN.replace("builtin:arithmetic/train", "absent.jsonl"))
    done = modelwright("doctor", "run.toml")
    assert done.returncode == 1
    assert f"torch {metadata.version('torch')}" in done.stdout
    for row in ("Python", "CPUs", "memory", "torch", "DeepSpeed", "Slurm", "home", "hub"):
        assert f"\n {row} " in done.stdout
    after = done.stdout[done.stdout.index(" missing ") :]
    assert "tiny" in after
    assert "absent.jsonl" in after


def test_a_run_that_lacks_nothing_is_reported_as_ready(modelwright, tmp_path):
    """With exit code 0."""
    (tmp_path / "run.toml").write_text(RUN + "[variants.a]\n[variants.b]\n")
    done = modelwright("doctor", "run.toml", "--variant", "b")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "Nothing is missing for tiny-b."


def test_options_of_a_run_need_one(here, wording):
    """Nothing is looked at."""
    code, error = here("doctor", "--set", "seed=1")
    assert code == 2
    wording(error.rstrip("\n"))


def test_a_wrong_run_file_is_reported_as_by_every_command(modelwright, tmp_path):
    """With exit code 2: what it would miss is not known."""
    (tmp_path / "run.toml").write_text(RUN + "nonsense = 1\n")
    done = modelwright("doctor", "run.toml", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "run.toml:10 [train] nonsense: unknown key" in done.stderr
