"""The jobs of a run: what was submitted, what each job left as it ended, and how they are doing.

While Slurm knows a job, its state comes from Slurm; afterwards it comes from the record that the job left.
`runs/NAME/slurm/` has all of it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.errors import UsageError
from modelwright.core.cluster import slurm
from modelwright.core.cluster.slurm import ENDED, QueuedJob
from modelwright.core.runs.folder import RunFolder

JOBS = "jobs.json"


@frozen(kw_only=True)
class Submitted:
    """A job that was submitted.

    Attributes:
        stage: its stage.
        job: its id.
        array: number of tasks; None if it is not an array.
        after: the jobs that must end well before it begins.
    """

    stage: str
    job: str
    array: int | None
    after: tuple[str, ...]

    @property
    def tasks(self) -> Sequence[str]:
        """The ids of its tasks; its own id if it is not an array."""
        return [f"{self.job}_{task}" for task in range(1, self.array + 1)] if self.array else [self.job]


def cluster_folder(folder: RunFolder) -> Path:
    """Where a run's scripts, and the logs and records of its jobs, are."""
    return folder.path / "slurm"


def write_submitted(folder: RunFolder, jobs: Sequence[Submitted]) -> None:
    """Note what was submitted, in the place of what was before."""
    files.write_json(cluster_folder(folder) / JOBS, {"jobs": [asdict(job) for job in jobs]})


def read_submitted(folder: RunFolder) -> list[Submitted]:
    """The jobs of the last submission, in order; none where there was none.

    Raises:
        DamagedError: the file is not such a list.
    """
    path = cluster_folder(folder) / JOBS
    values = files.read_state(path, {"jobs": list}, remedy="remove it to submit again; squeue shows the jobs")
    try:
        rows: list[Mapping[str, Any]] = values["jobs"] if values else []
        return [
            Submitted(stage=row["stage"], job=row["job"], array=row["array"], after=tuple(row["after"])) for row in rows
        ]
    except (KeyError, TypeError) as error:
        raise files.DamagedError(path, f"not a job: {error}", remedy="remove it; squeue shows the jobs") from error


def log_of(folder: RunFolder, stage: str, task: str) -> Path:
    """Where Slurm puts what a job, or a task of an array, prints."""
    return cluster_folder(folder) / f"{stage}-{task}.log"


def ends_of(folder: RunFolder, stage: str, task: str) -> list[dict[str, Any]]:
    """What a job left as it ended, once for each time that it ran: {job, restarts, nodes, began, ended, exit}."""
    try:
        content = (cluster_folder(folder) / f"{stage}-{task}.end").read_bytes()
    except OSError:
        return []
    return [row for row in files.appended_tables(content) if {"began", "ended", "exit"} <= row.keys()]


# The state of a job of which neither Slurm nor a record says how it ended.
UNKNOWN = "UNKNOWN"
# How much of a log's end is searched for the error.
_TAIL = 65536

# Explanations of Slurm's reasons.
_REASONS = {
    "BeginTime": "queued again; it can start in a moment",
    "JobHeldUser": "held; release it with scontrol release",
    "PartitionConfig": "no node of the partition has what [cluster] requests",
    "PartitionNodeLimit": "[cluster] nodes is more than the partition has",
    "PartitionTimeLimit": "[cluster] time is more than the partition allows",
    "Priority": "jobs with a higher priority come first",
    "ReqNodeNotAvail": "nodes that it needs are not available",
    "Resources": "waiting for free nodes",
}


@frozen(kw_only=True)
class JobView:
    """A job, or a task of an array, for people and programs.

    Attributes:
        stage: its stage.
        job: its id.
        state: Slurm's state; UNKNOWN if nobody knows.
        why: reason for the state; None if the state says enough.
        elapsed: run time.
        restarts: how many times it was queued again.
        nodes: names of its nodes.
        exit_code: exit code of its script, if it has ended.
        log: its log; it may not exist yet.
    """

    stage: str
    job: str
    state: str
    why: str | None
    elapsed: str | None
    restarts: int
    nodes: str | None
    exit_code: int | None
    log: Path

    @property
    def ended(self) -> bool:
        """Whether it neither runs nor waits."""
        return self.state in ENDED or self.state == UNKNOWN


def submitted_runs() -> list[RunFolder]:
    """The folders of all runs that were submitted, by name."""
    return [RunFolder(path.parents[1]) for path in sorted(home.runs().glob(f"*/slurm/{JOBS}"))]


def look(folders: Sequence[RunFolder]) -> list[tuple[RunFolder, list[JobView]]]:
    """The jobs of the last submission of each run, in order.

    Raises:
        UsageError: one was never submitted.
        ModelwrightError: Slurm does not answer.
    """
    runs = [(folder, read_submitted(folder)) for folder in folders]
    for folder, submitted in runs:
        if not submitted:
            raise UsageError(f"{folder.name} has no jobs: submit it with modelwright submit RUN.toml")
    jobs = [job for _, submitted in runs for job in submitted]
    known = slurm.queued([job.job for job in jobs])
    forgotten = [job.job for job in jobs if not set(job.tasks) & known.keys()]
    known |= {job: found for job, found in slurm.accounted(forgotten).items() if job not in known}
    return [(folder, _looked(folder, submitted, known)) for folder, submitted in runs]


def _looked(folder: RunFolder, submitted: Sequence[Submitted], known: Mapping[str, QueuedJob]) -> list[JobView]:
    views: list[JobView] = []
    for job in submitted:
        views += [_explained(view, job, views) for view in _views(folder, job, known)]
    return views


def _views(folder: RunFolder, job: Submitted, known: Mapping[str, QueuedJob]) -> Iterator[JobView]:
    for task in job.tasks:
        log = log_of(folder, job.stage, task)
        ends = ends_of(folder, job.stage, task)
        last: dict[str, Any] = ends[-1] if ends else {}
        found = known.get(task)
        if found is not None:
            yield JobView(
                stage=job.stage,
                job=task,
                state=found.state,
                why=found.reason,
                elapsed=found.elapsed,
                restarts=last.get("restarts", 0) if found.restarts is None else found.restarts,
                nodes=found.nodes or None,
                exit_code=found.exit_code,
                log=log,
            )
            continue
        code = last.get("exit")
        yield JobView(
            stage=job.stage,
            job=task,
            state=UNKNOWN if code is None else "COMPLETED" if code == 0 else "FAILED",
            why=None,
            elapsed=str(timedelta(seconds=last["ended"] - last["began"])) if last else None,
            restarts=last.get("restarts", 0),
            nodes=last.get("nodes"),
            exit_code=code,
            log=log,
        )


def _explained(view: JobView, job: Submitted, before: Sequence[JobView]) -> JobView:
    """The same with a `why` for people."""
    failed = next((one for one in before if one.ended and one.state not in ("COMPLETED", UNKNOWN)), None)
    if view.state == "PENDING" and view.why == "Dependency":
        why: str | None = f"waiting for {' and '.join(f'{before[-1].stage} ({each})' for each in job.after)}"
    elif view.exit_code is None and view.state in ("CANCELLED", UNKNOWN, "PENDING") and failed:
        # It never began; where Slurm has forgotten it, it left no record.
        return evolve(view, state="CANCELLED", why=f"{failed.stage} ({failed.job}) did not succeed: {failed.state}")
    elif view.state in ("COMPLETED", "CANCELLED"):
        why = None
    elif view.state == "TIMEOUT":
        why = "it reached the time limit before it could stop: raise [cluster] stop_before or time"
    elif view.state == "OUT_OF_MEMORY":
        why = "out of memory: raise [cluster] memory"
    elif view.state == UNKNOWN:
        why = "Slurm no longer knows it, and it left no record of its end: it was killed or never started"
    elif view.state in ENDED:
        why = _last_error(view.log) or _full(view.log.parent) or _REASONS.get(view.why or "", view.why)
    else:
        why = _REASONS.get(view.why or "", view.why)
    return evolve(view, why=why)


def _full(folder: Path) -> str | None:
    """Whether nothing more can be written where the logs are: a job that finds it so cannot say it there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write to {folder}: {(error.strerror or str(error)).lower()}"
    return None


def _last_error(log: Path) -> str | None:
    """The last error that a job printed, or else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ") if errors else (lines[-1] if lines else None)


def cancel(folders: Sequence[RunFolder]) -> list[tuple[RunFolder, JobView]]:
    """End the jobs of the last submission of each run; gives those that had not ended yet.

    Raises:
        UsageError: one was never submitted.
        ModelwrightError: Slurm does not answer, or refuses.
    """
    going = [(folder, view) for folder, views in look(folders) for view in views if not view.ended]
    if going:
        slurm.cancel(sorted({view.job.partition("_")[0] for _, view in going}))
    return going
