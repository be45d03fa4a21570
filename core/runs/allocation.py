"""The Slurm job that this process belongs to, read from its environment."""

from __future__ import annotations

import os

from attrs import frozen


@frozen(kw_only=True)
class Allocation:
    """A job's share of the cluster.

    Attributes:
        job: its id; `ARRAY_TASK` for a task of an array.
        own: the id by which Slurm's commands know it; a task of an array has one of its own.
        nodes: number of nodes.
        node_list: their names, in Slurm's short form, such as `n[1-2]`.
        cpus: cores of each task; None if the job requested no number.
        restarts: how many times it was queued again.
    """

    job: str
    own: str
    nodes: int
    node_list: str
    cpus: int | None
    restarts: int


def allocation() -> Allocation | None:
    """The allocation of this process; None outside of a job."""
    own = os.environ.get("SLURM_JOB_ID")
    if own is None:
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return Allocation(
        job=f"{array}_{task}" if array and task else own,
        own=own,
        nodes=int(os.environ.get("SLURM_JOB_NUM_NODES", "1")),
        node_list=os.environ.get("SLURM_JOB_NODELIST", ""),
        cpus=int(cpus) if (cpus := os.environ.get("SLURM_CPUS_PER_TASK")) else None,
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )
