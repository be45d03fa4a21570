"""What goes wrong on a cluster is one clear line: which stage, which job, which log."""

from __future__ import annotations

import contextlib
import json
import subprocess

import pytest

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm")]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            'partition = "fast"',
            "there is no partition 'fast': set [cluster] partition to debug, gpu, high, low or paid",
        ),
        (
            "train.gpus_per_node = 'b200:1'",
            "the nodes of the default partition have gpu:1, and [cluster.train] gpus_per",
        ),
        ("nodes = 9", "the default partition has 2 nodes, and [cluster] nodes is 9"),
        ('partition = "paid"\naccount = "ours"', "Invalid account or account/partition combination"),
        ('memory = "9T"', "no node of the default partition has what [cluster] requests (cpus, memory, gpus_per_node"),
        ('sbatch = { constraint = "h200" }', "Invalid feature specification: check [cluster] sbatch.constraint"),
        ('sbatch = { no-such-option = "" }', "unrecognized option '--no-such-option'"),
    ],
)
def test_what_slurm_would_never_run_is_refused_before_anything_is_queued(slurm, run_file, more, said, home):
    """The line names run, stage, key and script; no stage is queued, those that Slurm would take included."""
    path = run_file(f"[cluster]\n{more}", "train.trainer = 'deepspeed'" if "nodes" in more else "")
    done = slurm.modelwright("submit", path)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: tiny: Slurm refuses the job for ")
    assert said in line
    assert str(home / "runs" / "tiny" / "slurm") in line
    assert subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout == ""


def test_without_slurm_there_are_the_scripts(modelwright, run_file, monkeypatch, tmp_path, home):
    """On a machine of no cluster, submit says so, and --print writes what would be submitted."""
    path = run_file()
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = modelwright("submit", path)
    assert refused.returncode == 2
    assert "sbatch is not on the path" in refused.stderr
    assert not home.exists()
    printed = modelwright("submit", path, "--print", "--json")
    assert printed.returncode == 0, printed.stderr
    scripts = [row["script"] for row in json.loads(printed.stdout)]
    assert [row["stage"] for row in json.loads(printed.stdout)] == ["prepare", "train", "register"]
    for script in scripts:
        subprocess.run(["/bin/bash", "-n", script], check=True)


def test_a_failed_stage_leaves_its_dependants_cancelled_and_jobs_says_why(
    slurm, run_file, rows_file, tmp_path, start_cluster, monkeypatch
):
    """Even when Slurm has forgotten the jobs."""
    rows_file(tmp_path / "data.jsonl", [{"question": "1 + 1?", "answer": "2"}] * 8)
    path = run_file(f"data = {{ quality.deduplicate = false, sources = [{{ path = '{tmp_path}/data.jsonl' }}] }}")
    jobs = slurm.submit(path)
    (tmp_path / "data.jsonl").write_text("{}\n")  # between submitting and beginning
    slurm.wait(*jobs.values())

    def check():
        prepare, train, register = slurm.jobs("tiny")
        assert (prepare["state"], prepare["exit_code"], train["state"], register["state"]) == (
            ("FAILED", 1, "CANCELLED", "CANCELLED")
        )
        assert "max_rejected" in prepare["why"]
        assert prepare["log"].endswith(f"prepare-{jobs['tiny', 'prepare']}.log")
        assert train["why"] == register["why"] == f"prepare ({prepare['job']}) did not succeed: FAILED"
        shown = slurm.modelwright("jobs", "tiny").stdout
        assert prepare["why"] in shown
        assert prepare["log"] in shown
        assert prepare["why"] in slurm.modelwright("jobs", "logs", "tiny").stdout

    check()
    monkeypatch.setenv("SLURM_CONF", start_cluster(nodes=1, extra=""))  # one that never heard of them
    check()


def test_a_setup_line_that_fails_ends_the_job_with_what_it_said(slurm, run_file):
    """Before anything runs in the wrong environment."""
    jobs = slurm.submit(run_file('cluster.setup = ["source /no/such/venv/bin/activate", "touch unreached"]\n'))
    slurm.wait(*jobs.values())
    prepare, *_ = slurm.jobs("tiny")
    assert (prepare["state"], prepare["exit_code"]) == ("FAILED", 1)
    assert "/no/such/venv/bin/activate: No such file or directory" in prepare["why"]


@pytest.fixture
def small_home(tmp_path, monkeypatch):
    """A home that holds little, and a way to fill it."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a full disk needs a small file system, and mounting one needs root: {done.stderr.strip()}")
    monkeypatch.setenv("MODELWRIGHT_HOME", str(folder))

    def fill() -> None:
        with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"0" * 4096)

    yield fill
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_quota_is_named_by_submit_and_by_jobs(slurm, run_file, small_home, tmp_path):
    """At submitting, and when a job finds it full, which cannot write that into its log."""
    path = run_file('cluster.setup = ["while [ ! -e full ]; do sleep 0.1; done"]\n', cold=True)
    jobs = slurm.submit(path)
    slurm.wait(jobs["tiny", "prepare"], states="RUNNING")
    small_home()
    (tmp_path / "full").touch()
    slurm.wait(*jobs.values())
    prepare, *_ = slurm.jobs("tiny")
    assert (prepare["stage"], prepare["state"], prepare["exit_code"]) == ("prepare", "FAILED", 1)
    assert "no space left on device" in prepare["why"].lower()
    refused = slurm.modelwright("submit", path, "--set", 'name="other"')
    assert refused.returncode == 1
    assert "not enough disk space" in refused.stderr
    assert str(tmp_path / "small") in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
