"""`modelwright prepare RUN.toml --shard I/N` and `--merge`: what a wrong command line is told."""

from __future__ import annotations

import pytest

RUN = """
name = "prep"
[model.scratch]
[data]
format = "general"
[[data.sources]]
path = "builtin:arithmetic/train"
limit = 20
[train]
max_steps = 1
"""
EXPECTED = "expected I/N, part I of N counted from 1, such as 2/4"


@pytest.fixture
def run_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize("given", ["0/4", "5/4", "x", "", "1", "1/0", "-1/4", "1/4/2", "1.0/4", "٣/٤", " 1/4", "1/4\n"])
def test_what_is_no_part_is_refused(here, run_toml, given):
    """In one line that shows a right one."""
    code, error = here("prepare", run_toml, "--shard", given)
    assert (code, error) == (2, f"error: --shard {given!r}: {EXPECTED}\n")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--shard", "1/2", "--merge"], "--shard prepares one part, and --merge finishes when all are there"),
        (["--shard", "1/2", "--shard", "2/2"], "--shard is given twice: give it once"),
        (["--shard", "1/2", "--fresh"], "--fresh would take away what other parts have made"),
        (["--merge", "--fresh"], "--fresh would take away what other parts have made"),
        (["--shard", "1/2", "--dry-run"], "leave out --dry-run"),
        (["--shard", "1/2", "--input", "a.jsonl"], "leave out --input, or leave out the file"),
        (["--merge", "--input", "a.jsonl"], "leave out --input, or leave out the file"),
    ],
)
def test_options_that_say_two_things_are_refused(here, run_toml, home, options, why):
    """Before anything is made."""
    code, error = here("prepare", run_toml, *options)
    assert code == 2
    assert why in error
    assert not home.exists()


@pytest.mark.parametrize("options", [["--shard", "1/2"], ["--merge"]])
def test_files_of_examples_are_not_made_in_parts(here, options):
    """Only a run's data are."""
    code, error = here("prepare", *options, "--format", "math", "--input", "a.jsonl", "--output", "b.jsonl")
    assert (code, error) == (2, f"error: {options[0]} is for a run: give its RUN.toml\n")


def test_no_registry_is_needed_for_a_part(modelwright, run_toml, tmp_path):
    """Jobs that run at once share no database."""
    (tmp_path / "broken.db").write_text("no database")
    done = modelwright("prepare", run_toml, "--shard", "1/1", "--registry", f"sqlite:///{tmp_path}/broken.db")
    assert done.returncode == 0, done.stderr
    assert "prep prepare 1/1 1 of 1 shards, 20 rows read, 20 examples" in done.stderr
    assert done.stdout == ""


def test_a_plan_of_the_merge_is_that_of_the_stage(modelwright, run_toml):
    """It is one stage, whoever has done its parts."""
    done = modelwright("prepare", run_toml, "--merge", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would run" in done.stdout
