"""`[cluster]`: what `modelwright submit` requests from Slurm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen, validators

from modelwright.core.config.errors import shown
from modelwright.core.config.paths import FilePath

_positive = validators.gt(0)
_several: Any = validators.optional(_positive)

# https://slurm.schedmd.com/sbatch.html#OPT_time
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?"
    r"|(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)|(?P<only_m>\d+)(?::(?P<only_s>\d+))?)"
)
_MEMORY = re.compile(r"(?P<number>\d+)(?P<unit>[KMGT]?)")
_GPUS = re.compile(r"(?P<kind>[A-Za-z][\w.-]*):(?P<count>[1-9]\d*)")
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


# Options of srun that the script sets.
_STARTS = ("nodes", "ntasks", "ntasks-per-node", "kill-on-bad-exit")


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


def bytes_of(memory: str) -> int:
    """The bytes of a size, as Slurm reads it; a number alone is megabytes.

    Raises:
        ValueError: it is not a size.
    """
    match = _MEMORY.fullmatch(memory)
    if match is None:
        raise ValueError(f"must be a size such as 64G or 900M, not {shown(memory)}")
    return int(match["number"]) << 10 * "_KMGT".index(match["unit"] or "M")


def _a_time(_instance: Any, _attribute: Any, value: str) -> None:
    if not seconds_of(value):
        raise ValueError(f"must be a time such as 04:00:00 or 1-12:00:00 (one day, twelve hours), not {shown(value)}")


def _a_size(_instance: Any, _attribute: Any, value: str) -> None:
    bytes_of(value)


def _some_gpus(_instance: Any, _attribute: Any, value: int | str) -> None:
    if not (_GPUS.fullmatch(value) if isinstance(value, str) else value > 0):
        raise ValueError(f'must be a number above 0, or a type and a number such as "a100:4", not {shown(value)}')


def _one_line(_instance: Any, _attribute: Any, value: str) -> None:
    if not value.strip() or not value.isprintable():
        raise ValueError(f"must be one line of text, not {shown(value)}")


_word = validators.optional(_one_line)

STAGES = ("prepare", "train", "register", "evaluate", "promote")
# The one job of all stages.
WHOLE_RUN = "run"
# Registering and promoting take seconds and little memory, even if the training takes days.
_BRIEF = ("register", "promote")
_BRIEF_MEMORY, _BRIEF_TIME = "1G", "01:00:00"
# What every stage requests as `[cluster]` says, unless its own table says otherwise.
_COMMON = ("cpus", "memory", "partition", "account", "qos", "time")


@frozen(kw_only=True)
class StageResources:
    """`[cluster.STAGE]`: What the jobs of this stage request, where it differs from `[cluster]`.

    Attributes:
        gpus_per_node: GPUs per node: a number, or their type and a number, such as `"a100:4"`.
        cpus: CPU cores per node, shared by its processes.
        memory: Memory per node, such as `"64G"`.
        partition: Partition to queue in.
        account: Account to charge.
        qos: Quality of service to request.
        time: Time limit of each job, as `HH:MM:SS` or `D-HH:MM:SS`.
        sbatch: Other options of sbatch, by their long names without dashes; `""` for an option without a value. A
            stage's own are added to those of `[cluster]`.
    """

    gpus_per_node: int | str | None = field(default=None, validator=validators.optional(_some_gpus))
    cpus: int | None = field(default=None, validator=_several)
    memory: str | None = field(default=None, validator=validators.optional(_a_size))
    partition: str | None = field(default=None, validator=_word)
    account: str | None = field(default=None, validator=_word)
    qos: str | None = field(default=None, validator=_word)
    time: str | None = field(default=None, validator=validators.optional(_a_time))
    sbatch: Mapping[str, str] = field(factory=dict)

    @property
    def gpus(self) -> int:
        """Number of GPUs per node."""
        if isinstance(self.gpus_per_node, str):
            return int(self.gpus_per_node.rpartition(":")[2])
        return self.gpus_per_node or 0

    def fits(self, gpus: str) -> bool:
        """Whether a node has the requested GPUs; `gpus` is what it has, `TYPE:NUMBER` or a number, or empty."""
        kind, _, count = gpus.rpartition(":")
        wanted = str(self.gpus_per_node).rpartition(":")[0]
        return self.gpus <= int(count or 0) and wanted in ("", kind)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the names in its tables, as (key, message)."""
        for name, value in self.sbatch.items():
            if name in _OWN:
                yield f"sbatch.{name}", "modelwright submit sets this option itself: remove it"
            elif name in _KEYS:
                yield f"sbatch.{name}", f"set {_KEYS[name]} instead"
            elif not _OPTION.fullmatch(name):
                yield f"sbatch.{name}", "must be the long name of an sbatch option, without dashes"
            elif not value.isprintable():
                yield f"sbatch.{name}", f"must be one line of text, not {shown(value)}"


@frozen(kw_only=True)
class ClusterConfig(StageResources):
    """`[cluster]`: What `modelwright submit` requests from Slurm. Only training runs on more than one node.

    Attributes:
        gpus_per_node: GPUs per node for training: a number, or their type and a number, such as `"a100:4"`. The jobs of
            other stages request GPUs only if their own tables say so.
        nodes: Number of nodes to train on.
        processes_per_node: Number of training processes per node. Default: `gpus_per_node`, or else `processes` of
            `[train]`.
        prepare: What preparing the data requests, where it differs from the keys of `[cluster]`.
        train: What training requests, where it differs: GPUs, their partition and much memory belong here.
        register: What registering requests, where it differs. Default: at most 1 CPU, 1 GB and an hour.
        evaluate: What evaluating requests, where it differs, such as `gpus_per_node = 1`.
        promote: What promoting requests, where it differs. Default: at most 1 CPU, 1 GB and an hour.
        one_job: Run all stages in one job, which requests what training does. Set it if jobs wait long in the queue and
            the other stages are short.
        stop_before: Seconds before the time limit at which a job is asked to stop; it then writes a checkpoint and is
            queued again. Raise it if a checkpoint takes longer to write.
        prepare_shards: Number of array jobs that prepare the data in parallel. Raise it for large data.
        shards_at_once: Maximum number of these that run at the same time. Set it to leave room for others.
        login_shell: Start each job in a login shell, which reads `/etc/profile`. Set it if jobs do not find `module`.
        prologue: Shell commands to run first in each job, before the modules, such as `"module use /opt/our/modules"`.
        modules: Environment modules to load after the prologue.
        environment: Environment variables to set after the modules.
        copy_to_nodes: Files and folders to copy to each node's own disk before `setup`; archives of tar are unpacked.
            They are in `$MODELWRIGHT_LOCAL`, and removed when the job ends.
        local_folder: Folder on each node's own disk for these copies; the shell expands variables in it.
        setup: Shell commands to run after that, such as `"source venv/bin/activate"`. If one fails, so does the job.
        container: Command in front of `modelwright` and `deepspeed` that runs them in a container, such as `"apptainer
            exec --nv train.sif"`; the shell expands variables in it.
        srun: Options of srun, by their long names without dashes. If any are set, srun starts each process of a job
            with them: Pyxis has its containers so, and a container needs no Slurm of its own then.
    """

    nodes: int = field(default=1, validator=_positive)
    processes_per_node: int | None = field(default=None, validator=_several)
    prepare: StageResources = field(factory=StageResources)
    train: StageResources = field(factory=StageResources)
    register: StageResources = field(factory=StageResources)
    evaluate: StageResources = field(factory=StageResources)
    promote: StageResources = field(factory=StageResources)
    one_job: bool = False
    stop_before: int = field(default=120, validator=validators.and_(_positive, validators.lt(65536)))
    prepare_shards: int = field(default=1, validator=_positive)
    shards_at_once: int | None = field(default=None, validator=_several)
    login_shell: bool = False
    prologue: tuple[str, ...] = ()
    modules: tuple[str, ...] = field(default=(), validator=validators.deep_iterable(_one_line))
    environment: Mapping[str, str] = field(factory=dict)
    copy_to_nodes: tuple[FilePath, ...] = ()
    local_folder: str = field(default="${TMPDIR:-/tmp}", validator=_one_line)
    setup: tuple[str, ...] = ()
    container: str | None = field(default=None, validator=_word)
    srun: Mapping[str, str] = field(factory=dict)

    @property
    def processes(self) -> int | None:
        """Number of training processes per node; None leaves it to `[train]`."""
        return self.processes_per_node or self.of("train").gpus or None

    @property
    def contained(self) -> bool:
        """Whether the stages run in a container, of a command or of Pyxis."""
        return self.container is not None or any(name.startswith("container-") for name in self.srun)

    def own(self, stage: str) -> StageResources:
        """The table of a stage; the one job of all stages is a training's."""
        own: StageResources = getattr(self, "train" if stage == WHOLE_RUN else stage)
        return own

    def of(self, stage: str) -> StageResources:
        """All that a stage's jobs request."""
        own = self.own(stage)
        requested: dict[str, Any] = {name: getattr(self, name) for name in _COMMON}
        if stage in _BRIEF:
            requested |= dict(self._brief())
        requested |= {name: value for name in _COMMON if (value := getattr(own, name)) is not None}
        gpus = own.gpus_per_node or (self.gpus_per_node if stage in ("train", WHOLE_RUN) else None)
        return StageResources(**requested, gpus_per_node=gpus, sbatch={**self.sbatch, **own.sbatch})

    def _brief(self) -> Iterator[tuple[str, Any]]:
        """What a stage of seconds requests instead of the common cores, memory and time, if they are more."""
        if self.cpus:
            yield "cpus", 1
        if self.memory and bytes_of(self.memory) > bytes_of(_BRIEF_MEMORY):
            yield "memory", _BRIEF_MEMORY
        if self.time and (seconds_of(self.time) or 0) > (seconds_of(_BRIEF_TIME) or 0) > self.stop_before:
            yield "time", _BRIEF_TIME

    def key(self, stage: str, name: str) -> str:
        """Where a request of a stage was set, for messages: `[cluster.train] memory`."""
        table = "train" if stage == WHOLE_RUN else stage
        return f"[cluster.{table}] {name}" if getattr(self.own(stage), name, None) else f"[cluster] {name}"

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, and with the names in its tables, as (key, message)."""
        yield from super().problems()
        limits = {"": self.time} | {f" of {stage}": self.own(stage).time for stage in STAGES}
        for whose, limit in ((whose, seconds_of(time)) for whose, time in limits.items() if time):
            if limit is not None and self.stop_before >= limit:
                message = f"must be shorter than the time limit{whose} ({limit} s), not {self.stop_before} s"
                yield "stop_before", message
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                yield "environment", f"{shown(name)} is not a valid variable name"
        for name, value in self.srun.items():
            if not _OPTION.fullmatch(name) or name in _STARTS:
                yield f"srun.{name}", "must be the long name of an srun option that does not set nodes or tasks"
            elif not value.isprintable():
                yield f"srun.{name}", f"must be one line of text, not {shown(value)}"
        if self.one_job and self.prepare_shards > 1:
            yield "one_job", "cannot be true with prepare_shards, which needs jobs of its own: set one of them"
        if self.one_job and self.srun and self.nodes * (self.processes or 1) > 1:
            yield "one_job", "cannot be true if srun starts several processes of a training: leave out one of them"
