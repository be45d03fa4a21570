"""Time limits and preemption: a job stops at a checkpoint, is queued again, and goes on as if nothing had been."""

from __future__ import annotations

import json
import subprocess

import pytest
from waiting import until

from modelwright.core.cluster.slurm import ENDED
from modelwright.core.runs.events import EventTail

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm")]

TIMES = 3


def _digest(home, run):
    return json.loads((home / "runs" / run / "done" / "train.json").read_text())["outputs"]["digest"]


def test_a_job_that_was_queued_again_three_times_ends_with_the_weights_of_one_that_was_not(
    slurm, run_file, home, modelwright
):
    """Each time it goes on after its checkpoint; the events record each; and Slurm itself signals before a limit."""
    limited = run_file(
        "name = 'limited'",
        'cluster = { setup = ["sleep 50 & wait || true"], stop_before = 55, time = "00:01:00" }',
    )
    limited = slurm.submit(limited)["limited", "prepare"]
    path = run_file("train.max_steps = 600")
    jobs = slurm.submit(path)
    train = jobs["tiny", "train"]
    for number in range(TIMES):
        slurm.wait_for_step("tiny", number * 50 + 20)
        slurm.signal_as_the_limit_would(train)
        slurm.begin_again(train)
    uninterrupted = modelwright("run", path, "--set", 'name="whole"')
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    slurm.wait(*jobs.values())

    assert [(job["stage"], job["state"], job["restarts"]) for job in slurm.jobs("tiny")] == [
        ("prepare", "COMPLETED", 0),
        ("train", "COMPLETED", TIMES),
        ("register", "COMPLETED", 0),
    ]
    assert _digest(home, "tiny") == _digest(home, "whole")
    reported = [event.data for event in EventTail(home / "runs" / "tiny" / "events").poll() if event.kind == "job"]
    reported = [(each["job"], each["restarts"]) for each in reported if each["job"] == train]
    assert reported == [(train, number) for number in range(TIMES + 1)]

    def queued_again():
        [prepare, *_] = slurm.jobs("limited")
        return prepare if prepare["restarts"] or prepare["state"] in ENDED else None

    prepare = until(queued_again, every=0.5)
    assert prepare["job"] == limited
    assert prepare["state"] not in ENDED, "where this took minutes, it has begun again"


def test_a_job_that_stops_at_once_is_queued_again_while_slurm_still_signals_it(slurm, run_file, tmp_path):
    """Or does not answer. Both pass in an instant, and cannot be brought about: a function replaces `squeue`."""
    squeue = f"squeue() {{ [ -e {tmp_path}/asked ] && echo SIGNALING || {{ touch {tmp_path}/asked; false; }}; }}"
    path = run_file(f"cluster.setup = [{json.dumps(squeue)}, 'kill -s USR1 $$']")
    prepare = slurm.submit(path)["tiny", "prepare"]

    def queued_again():
        job = slurm.jobs("tiny")[0]
        # Slurm gives the reason a moment after the state.
        reported = job["state"] in ENDED or (job["restarts"] and job["state"] == "PENDING" and job["why"])
        return job if reported else None

    job = until(queued_again)
    assert (job["job"], job["state"], job["restarts"]) == (prepare, "PENDING", 1)
    assert job["why"].startswith("queued again")
    assert (tmp_path / "asked").exists()


def test_a_job_that_makes_way_for_another_is_queued_again_and_goes_on(slurm, run_file, home):
    """Preemption: Slurm sends what it sends before a limit, whenever it likes."""
    path = run_file('cluster.partition = "low"\ntrain.max_steps = 3000')
    train = slurm.submit(path)["tiny", "train"]
    slurm.wait_for_step("tiny", 20)
    command = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    urgent = subprocess.run([*command, "--wrap=true"], capture_output=True, text=True, check=True).stdout.strip()
    slurm.wait(urgent)
    slurm.begin_again(train)
    folder = home / "runs" / "tiny" / "events"
    resumed = until(lambda: [event.data["step"] for event in EventTail(folder).poll() if event.kind == "resumed"])
    assert resumed[0] >= 20
    assert slurm.modelwright("jobs", "cancel", "tiny").returncode == 0


def test_a_cancelled_job_is_not_queued_again_and_the_next_submission_resumes_it(slurm, run_file, home, modelwright):
    """It is stopped as a limit stops it; that it has ended is the person's wish."""
    path = run_file("train.max_steps = 20000")
    jobs = slurm.submit(path)
    train = jobs["tiny", "train"]
    slurm.wait_for_step("tiny", 20)
    again = modelwright("submit", path)
    assert again.returncode == 2
    assert f"tiny is already submitted: its job {train} (train) is RUNNING" in again.stderr
    done = modelwright("jobs", "cancel", path)
    assert f"cancelled {train}: train of tiny (RUNNING)" in done.stdout
    slurm.wait(train)
    until(lambda: all(job["state"] in ENDED for job in slurm.jobs("tiny")))
    assert [(job["state"], job["restarts"]) for job in slurm.jobs("tiny")] == [
        ("COMPLETED", 0),
        ("CANCELLED", 0),
        ("CANCELLED", 0),
    ]
    assert modelwright("jobs", "cancel", "tiny").stdout == "Nothing to cancel: all jobs have ended.\n"
    plan = json.loads(modelwright("run", path, "--dry-run", "--json").stdout)["tiny"]
    assert plan[1]["why"].startswith("interrupted; resumes after step")
    assert list(slurm.submit(path)) == [("tiny", "train"), ("tiny", "register")], "what is done has no job"
