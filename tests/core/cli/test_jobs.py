"""`submit` and `jobs` where no cluster is needed: scripts, wrong use, and what records tell."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny_run import tiny_run

RUN = tiny_run("""
train.max_steps = 1
cluster.time = "01:00:00"
[variants.a]
[variants.b]
evaluate = [{ name = "sums", path = "builtin:arithmetic/test", metrics = ["math_accuracy"] }]
""")


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def test_print_writes_a_script_for_each_stage_that_has_something_to_do(modelwright, run_file, home):
    """Of every variant; a stage that the file gives nothing to do has none."""
    done = modelwright("submit", run_file, "--print", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["run"], row["stage"]) for row in rows] == [
        *[("tiny-a", stage) for stage in ("prepare", "train", "register")],
        *[("tiny-b", stage) for stage in ("prepare", "train", "register", "evaluate")],
    ]
    assert [row["script"] for row in rows][1] == str(home / "runs/tiny-a/slurm/train.sbatch")
    assert json.loads(modelwright("submit", run_file, "--variant", "b", "--print", "--json").stdout) == rows[3:]
    shown = modelwright("submit", run_file, "--print").stdout
    assert all(row["script"] in shown for row in rows)


def test_the_scripts_read_the_run_as_it_is_resolved(modelwright, run_file, home):
    """The file beside them comes to the same as what was submitted, name and all."""
    printed = modelwright("submit", run_file, "--variant", "b", "--set", "train.learning_rate=5e-4", "--print")
    assert printed.returncode == 0, printed.stderr
    [frozen] = (home / "runs" / "tiny-b" / "slurm").glob("run-*.toml")
    assert str(frozen) in (home / "runs" / "tiny-b" / "slurm" / "train.sbatch").read_text()
    submitted = modelwright("config", "show", run_file, "--variant", "b", "--set", "train.learning_rate=5e-4", "--json")
    assert json.loads(modelwright("config", "show", frozen, "--json").stdout) == json.loads(submitted.stdout)


GPUS = """
cluster.train = { partition = "gpu", gpus_per_node = "a100:1" }
cluster.prepare_shards = 4
cluster.shards_at_once = 2
"""


def test_a_dry_run_says_what_each_job_would_request(modelwright, tmp_path, home, monkeypatch, wording):
    """Without Slurm as well; nothing is written. An evaluation without a GPU gets a hint."""
    path = tmp_path / "run.toml"
    path.write_text(tiny_run(RUN, GPUS))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = modelwright("submit", path, "--variant", "b", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    wording(done.stderr)
    rows = [(row["stage"], row["array"], row["partition"], row["gpus_per_node"]) for row in json.loads(done.stdout)]
    assert rows == [
        ("prepare-shards", 4, None, None),
        ("prepare", None, None, None),
        ("train", None, "gpu", "a100:1"),
        ("register", None, None, None),
        ("evaluate", None, None, None),
    ]
    assert "a100:1" in modelwright("submit", path, "--dry-run").stdout
    assert not home.exists()
    assert modelwright("submit", path, "--dry-run", "--print").returncode == 2
    modelwright("submit", path, "--variant", "b", "--print")
    scripts = home / "runs" / "tiny-b" / "slurm"
    assert "#SBATCH --array=1-4%2\n" in (scripts / "prepare-shards.sbatch").read_text()
    assert "#SBATCH --gpus-per-node=a100:1\n" in (scripts / "train.sbatch").read_text()


def test_scripts_are_printed_beside_a_submission_without_slurm(modelwright, run_file, home, monkeypatch, tmp_path):
    """The run file that the submitted jobs read stays as it is."""
    modelwright("submit", run_file, "--variant", "a", "--print")
    folder = home / "runs" / "tiny-a" / "slurm"
    [read] = folder.glob("run-*.toml")
    before = read.read_bytes()
    job = {"stage": "train", "job": "7", "array": None, "after": []}
    (folder / "jobs.json").write_text(json.dumps({"jobs": [job]}))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = modelwright("submit", run_file, "--variant", "a", "--print", "--set", "train.max_steps=9")
    assert done.returncode == 0, done.stderr
    assert read.read_bytes() == before
    assert len(list(folder.glob("run-*.toml"))) == 2


def test_less_memory_than_a_training_takes_is_refused(modelwright, run_file, wording):
    """A stage's own limit is looked at; all that a node has is enough for anything."""
    scratch = "model.scratch={hidden_size=1024, layers=8, heads=8, vocab_size=32000}"
    large = ("--variant", "a", "--print", "--set", scratch)
    done = modelwright("submit", run_file, *large, "--set", "cluster.train.memory='2G'")
    assert done.returncode == 2
    wording(done.stderr)
    assert "[cluster] memory is 2.0G" in done.stderr
    for enough in ("cluster.train.memory='0'", "cluster.memory='16G'"):
        done = modelwright("submit", run_file, *large, "--set", enough)
        assert "memory is" not in done.stderr


def test_more_processes_than_the_trainer_takes_are_refused(modelwright, run_file):
    """Before anything is written."""
    done = modelwright("submit", run_file, "--print", "--set", "cluster.nodes=2")
    assert done.returncode == 2
    assert "error: tiny-a: [cluster] requests 2 processes, but trainer 'local' runs in one" in done.stderr


def test_a_run_that_was_never_submitted_has_no_jobs(modelwright, run_file, home):
    """For every command about them."""
    modelwright("submit", run_file, "--print")
    for command in ([], ["show"], ["cancel"], ["logs"]):
        done = modelwright("jobs", *command, "tiny-a")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: tiny-a has no jobs: submit it with modelwright submit RUN.toml\n"
    assert "there is no run 'other'" in modelwright("jobs", "other").stderr
    assert "Missing argument 'RUN...'" in modelwright("jobs", "cancel").stderr
    assert modelwright("jobs").stdout == f"No run in {home / 'runs'} was submitted.\n"
    shown = modelwright("jobs", "--help")
    assert shown.returncode == 0
    assert all(f"  {command} " in shown.stdout for command in ("show", "cancel", "logs"))


def test_a_damaged_list_of_jobs_is_named(modelwright, run_file, home):
    """With what to do about it."""
    modelwright("submit", run_file, "--print")
    path = home / "runs" / "tiny-a" / "slurm" / "jobs.json"
    for content in ("{", '{"jobs": [{"stage": "train"}]}', '{"jobs": [3]}'):
        path.write_text(content)
        done = modelwright("jobs", "tiny-a")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {path} is damaged")
        assert len(done.stderr.splitlines()) == 1


def test_without_slurms_commands_jobs_says_so(modelwright, run_file, home, monkeypatch, tmp_path):
    """The records alone would not tell who still runs."""
    modelwright("submit", run_file, "--print")
    job = {"stage": "train", "job": "7", "array": None, "after": []}
    (home / "runs" / "tiny-a" / "slurm" / "jobs.json").write_text(json.dumps({"jobs": [job]}))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("squeue") is None
    done = modelwright("jobs", "tiny-a")
    assert done.returncode == 2
    assert done.stderr == "error: squeue is not on the path: run this on a machine of the cluster\n"
