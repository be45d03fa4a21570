"""`[cluster]`: what `modelwright submit` requests from Slurm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen, validators

from modelwright.core.config.errors import shown

_positive = validators.gt(0)
_several: Any = validators.optional(_positive)

# https://slurm.schedmd.com/sbatch.html#OPT_time
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?"
    r"|(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)|(?P<only_m>\d+)(?::(?P<only_s>\d+))?)"
)
_MEMORY = re.compile(r"\d+[KMGT]?")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Options that a script sets itself, and those that a key of `[cluster]` sets.
_OWN = frozenset(
    (
        *("array", "chdir", "dependency", "error", "hold", "job-name", "kill-on-invalid-dep", "no-requeue", "ntasks"),
        *("ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "test-only", "wait", "wrap"),
    )
)
_KEYS = {
    "account": "account",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus_per_node",
    "mem": "memory",
    "nodes": "nodes",
    "partition": "partition",
    "qos": "qos",
    "time": "time",
}


def seconds_of(time: str) -> int | None:
    """The seconds of a time limit, as Slurm reads it: `MM`, `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM`, `D-HH:MM:SS`.

    None if it is not a time limit.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    part = {name: int(text) for name, text in match.groupdict("0").items()}
    hours = part["days"] * 24 + part["hours"] + part["h"]
    minutes = part["minutes"] + part["m"] + part["only_m"]
    return (hours * 60 + minutes) * 60 + part["seconds"] + part["s"] + part["only_s"]


def _a_time(_instance: Any, _attribute: Any, value: str) -> None:
    if not seconds_of(value):
        raise ValueError(f"must be a time such as 04:00:00 or 1-12:00:00 (one day, twelve hours), not {shown(value)}")


def _a_size(_instance: Any, _attribute: Any, value: str) -> None:
    if not _MEMORY.fullmatch(value):
        raise ValueError(f"must be a size such as 64G or 900M, not {shown(value)}")


def _one_line(_instance: Any, _attribute: Any, value: str) -> None:
    if not value.strip() or not value.isprintable():
        raise ValueError(f"must be one line of text, not {shown(value)}")


_word = validators.optional(_one_line)


@frozen(kw_only=True)
class ClusterConfig:
    """`[cluster]`: What `modelwright submit` requests from Slurm. Only training runs on more than one node.

    Attributes:
        nodes: Number of nodes to train on.
        processes_per_node: Number of training processes per node. Default: `gpus_per_node`, or else `processes` of
            `[train]`.
        gpus_per_node: GPUs per node for training. If set, an evaluation job requests one GPU; all other jobs none.
        cpus: CPU cores per node, shared by its processes.
        memory: Memory per node, such as `"64G"`.
        partition: Partition to queue in.
        account: Account to charge.
        qos: Quality of service to request.
        time: Time limit of each job, as `HH:MM:SS` or `D-HH:MM:SS`.
        stop_before: Seconds before the time limit at which a job is asked to stop; it then writes a checkpoint and is
            queued again. Raise it if a checkpoint takes longer to write.
        prepare_shards: Number of array jobs that prepare the data in parallel. Raise it for large data.
        modules: Environment modules to load first in each job.
        environment: Environment variables to set after the modules.
        setup: Shell commands to run after that, such as `"source venv/bin/activate"`. If one fails, so does the job.
        container: Command in front of `modelwright` and `deepspeed` that runs them in a container, such as `"apptainer
            exec --nv train.sif"`.
        sbatch: Other options of sbatch, by their long names without dashes; `""` for an option without a value.
    """

    nodes: int = field(default=1, validator=_positive)
    processes_per_node: int | None = field(default=None, validator=_several)
    gpus_per_node: int | None = field(default=None, validator=_several)
    cpus: int | None = field(default=None, validator=_several)
    memory: str | None = field(default=None, validator=validators.optional(_a_size))
    partition: str | None = field(default=None, validator=_word)
    account: str | None = field(default=None, validator=_word)
    qos: str | None = field(default=None, validator=_word)
    time: str | None = field(default=None, validator=validators.optional(_a_time))
    stop_before: int = field(default=120, validator=validators.and_(_positive, validators.lt(65536)))
    prepare_shards: int = field(default=1, validator=_positive)
    modules: tuple[str, ...] = field(default=(), validator=validators.deep_iterable(_one_line))
    environment: Mapping[str, str] = field(factory=dict)
    setup: tuple[str, ...] = ()
    container: str | None = field(default=None, validator=_word)
    sbatch: Mapping[str, str] = field(factory=dict)

    @property
    def processes(self) -> int | None:
        """Number of training processes per node; None leaves it to `[train]`."""
        return self.processes_per_node or self.gpus_per_node

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, and with the names in its tables, as (key, message)."""
        limit = seconds_of(self.time) if self.time else None
        if limit is not None and self.stop_before >= limit:
            yield "stop_before", f"must be shorter than the time limit ({limit} s), not {self.stop_before} s"
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                yield "environment", f"{shown(name)} is not a valid variable name"
        for name, value in self.sbatch.items():
            if name in _OWN:
                yield f"sbatch.{name}", "modelwright submit sets this option itself: remove it"
            elif name in _KEYS:
                yield f"sbatch.{name}", f"set {_KEYS[name]} in [cluster] instead"
            elif not _OPTION.fullmatch(name):
                yield f"sbatch.{name}", "must be the long name of an sbatch option, without dashes"
            elif not value.isprintable():
                yield f"sbatch.{name}", f"must be one line of text, not {shown(value)}"
