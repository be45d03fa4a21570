"""What was submitted: `runs/NAME/slurm/jobs.json`; and what each job wrote as it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from modelwright.core.api import files
from modelwright.core.cluster.scripts import cluster_folder
from modelwright.core.runs.folder import RunFolder

JOBS = "jobs.json"


@frozen(kw_only=True)
class Submitted:
    """A job that was submitted.

    Attributes:
        stage: its stage.
        job: its id.
        array: how many tasks; None where it is no array.
        after: the jobs that must end well before it begins.
    """

    stage: str
    job: str
    array: int | None
    after: tuple[str, ...]

    @property
    def tasks(self) -> Sequence[str]:
        """The ids of its tasks; its own where it is no array."""
        return [f"{self.job}_{task}" for task in range(1, self.array + 1)] if self.array else [self.job]


def write_submitted(folder: RunFolder, jobs: Sequence[Submitted]) -> None:
    """Note what was submitted, in the place of what was before."""
    files.write_json(cluster_folder(folder) / JOBS, {"jobs": [asdict(job) for job in jobs]})


def read_submitted(folder: RunFolder) -> list[Submitted]:
    """The jobs of the last submission, in order; none where there was none.

    Raises:
        DamagedError: the file is no such list.
    """
    path = cluster_folder(folder) / JOBS
    values = files.read_state(path, {"jobs": list}, remedy="squeue shows the jobs; remove the file to submit again")
    try:
        rows: list[Mapping[str, Any]] = values["jobs"] if values else []
        return [
            Submitted(stage=row["stage"], job=row["job"], array=row["array"], after=tuple(row["after"])) for row in rows
        ]
    except (KeyError, TypeError) as error:
        raise files.DamagedError(path, f"no job: {error}", remedy="remove it; squeue shows the jobs") from error


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


def script_of(folder: RunFolder, stage: str) -> Path:
    """A stage's script."""
    return cluster_folder(folder) / f"{stage}.sbatch"
