"""`modelwright prepare RUN.toml --shard I/N` and `--merge`: errors of a wrong command line."""

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


@pytest.fixture
def run_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize("given", ["0/4", "5/4", "x", "", "1", "1/0", "-1/4", "1/4/2", "1.0/4", "٣/٤", " 1/4", "1/4\n"])
def test_an_invalid_shard_is_refused(wording, here, run_toml, given):
    """In one line that shows a right one."""
    code, error = here("prepare", run_toml, "--shard", given)
    assert code == 2
    wording(error.removesuffix("\n"))


@pytest.mark.parametrize(
    "options",
    [
        ["--shard", "1/2", "--merge"],
        ["--shard", "1/2", "--shard", "2/2"],
        ["--shard", "1/2", "--fresh"],
        ["--merge", "--fresh"],
        ["--shard", "1/2", "--dry-run"],
        ["--shard", "1/2", "--input", "a.jsonl"],
        ["--merge", "--input", "a.jsonl"],
    ],
    ids=" ".join,
)
def test_options_that_say_two_things_are_refused(wording, here, run_toml, home, options):
    """Before anything is made."""
    code, error = here("prepare", run_toml, *options)
    assert code == 2
    wording(error.removesuffix("\n"), path=run_toml)
    assert not home.exists()


@pytest.mark.parametrize("options", [["--shard", "1/2"], ["--merge"]])
def test_files_of_examples_are_not_made_in_shards(wording, here, options):
    """Only a run's data are."""
    code, error = here("prepare", *options, "--format", "math", "--input", "a.jsonl", "--output", "b.jsonl")
    assert code == 2
    wording(error.removesuffix("\n"))


def test_no_registry_is_needed_for_a_shard(wording, modelwright, run_toml, tmp_path):
    """Jobs that run at once share no database."""
    (tmp_path / "broken.db").write_text("no database")
    done = modelwright("prepare", run_toml, "--shard", "1/1", "--registry", f"sqlite:///{tmp_path}/broken.db")
    assert done.returncode == 0, done.stderr
    wording(done.stderr.splitlines()[-1])
    assert done.stdout == ""


def test_a_plan_of_the_merge_is_that_of_the_stage(modelwright, run_toml):
    """It is one stage, even if other jobs prepared its shards."""
    done = modelwright("prepare", run_toml, "--merge", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would run" in done.stdout
