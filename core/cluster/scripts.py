"""The batch script of each stage: what it requests from Slurm, how it sets up a job, and what it runs.

A script is a whole, readable file that anyone may change and give to `sbatch` by hand.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from modelwright.core.cluster.jobs import cluster_folder
from modelwright.core.config.cluster import WHOLE_RUN, ClusterConfig, StageResources
from modelwright.core.runs.folder import RunFolder

SHARDS = "prepare-shards"

# What every script begins with, before anything can fail or be signalled.
_BEGIN = """\
# Slurm forgets a job minutes after its end. This record of it stays.
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
began=$(date +%s)
leave_record() {{
    printf '{{"job": "%s", "restarts": %d, "nodes": "%s", "began": %d, "ended": %d, "exit": %d}}\\n' \\
        "$job" "${{SLURM_RESTART_COUNT:-0}}" "$SLURM_JOB_NODELIST" "$began" "$(date +%s)" "$1" \\
        >> {prefix}-"$job".end
}}
trap 'leave_record $?' EXIT

# Slurm signals this shell when the time limit is near (USR1) or the job is preempted (TERM). Pass it on to the run.
stopping=
run=
stop() {{
    stopping=1
    [ -z "$run" ] || kill -s USR1 "$run" 2>/dev/null  # srun would end the run at once if it got TERM
}}
trap stop USR1 TERM
"""

# In front of a training's processes that srun starts: what torchrun would tell each of them.
_RANKS = """\
# The first node's address for the others, and a port of this job's.
address=$(scontrol --oneliner show node "$SLURMD_NODENAME" | grep -o 'NodeAddr=[^ ]*' | cut -d = -f 2)
export MASTER_ADDR=${{address:-$SLURMD_NODENAME}} MASTER_PORT=$((12000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE={size} LOCAL_WORLD_SIZE={local} OMP_NUM_THREADS=${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}
"""
_RANK = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec"

# Copies on each node's own disk.
_COPIES = """\
export MODELWRIGHT_LOCAL="{folder}/modelwright-$SLURM_JOB_ID"
on_every_node() {{ {start}bash -c "$1"; }}
remove_copies() {{ on_every_node 'rm -rf "$MODELWRIGHT_LOCAL"'; }}
trap 'leave_record $?; remove_copies' EXIT
on_every_node {commands}
"""

# The command, and what its exit code means. One above 128 comes from a signal before the run listened for it.
_END = """\
code=75
if [ -z "$stopping" ]; then
    {command} &
    run=$!
    while kill -0 "$run" 2>/dev/null; do wait "$run"; done
    wait "$run"
    code=$?
fi

# 75: the run stopped at a safe point. Unless the job was cancelled or exceeded its limit, queue it again to resume.
# Slurm may still be signalling the job, and a busy controller may need another request.
if [ -n "$stopping" ] && {{ [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }}; then
    for _ in 1 2 3 4 5; do
        state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) && case $state in
            RUNNING | SIGNALING) scontrol requeue "$SLURM_JOB_ID" ;;
        esac && break
        sleep 2
    done
fi
exit "$code"
"""


@frozen(kw_only=True)
class _Share:
    """What a job of a stage has, and how it is used.

    Attributes:
        has: what it requests.
        nodes: number of nodes.
        tasks: number of processes on each node that Slurm knows of; 1 if the stage starts its own.
        ranks: whether srun starts every process of a training.
    """

    has: StageResources
    nodes: int
    tasks: int
    ranks: bool

    @classmethod
    def of(cls, cluster: ClusterConfig, stage: str) -> _Share:
        trains = stage in ("train", WHOLE_RUN)
        nodes, by_srun = cluster.nodes if trains else 1, trains and bool(cluster.srun)
        tasks = (cluster.processes or 1) if by_srun else 1
        return cls(has=cluster.of(stage), nodes=nodes, tasks=tasks, ranks=by_srun and nodes * tasks > 1)

    @property
    def cores(self) -> int | None:
        """Number of cores of each of these processes."""
        return max(1, self.has.cpus // self.tasks) if self.has.cpus else None


@frozen(kw_only=True)
class Script:
    """A batch script.

    Attributes:
        stage: its stage; `prepare-shards` are the array before `prepare`, which merges.
        path: where it is written.
        text: what is in it.
        array: number of tasks; None if it is not an array.
        nodes: number of nodes.
        requested: what it requests of each.
    """

    stage: str
    path: Path
    text: str
    array: int | None
    nodes: int
    requested: StageResources


@frozen(kw_only=True)
class Writer:
    """Writes the scripts of one run.

    Attributes:
        folder: the run's.
        cluster: the requested resources.
        resolved: the text of the resolved run file.
        home: what `MODELWRIGHT_HOME` is for the jobs.
        registry: the registry's URL.
        directory: where the jobs run.
    """

    folder: RunFolder
    cluster: ClusterConfig
    resolved: str
    home: Path
    registry: str
    directory: Path

    @property
    def config(self) -> Path:
        """The resolved run file: what is submitted stays as it is, though its source be edited."""
        digest = hashlib.sha256(self.resolved.encode()).hexdigest()
        return cluster_folder(self.folder) / f"run-{digest[:8]}.toml"

    def stage(self, stage: str) -> list[Script]:
        """The scripts of a stage: one, or two where many jobs prepare the data."""
        shards = self.cluster.prepare_shards
        if stage == "prepare" and shards > 1:
            share = f'--shard "$SLURM_ARRAY_TASK_ID"/{shards}'
            return [self._script(SHARDS, "prepare", share, array=shards), self._script(stage, stage, "--merge")]
        return [self._script(stage, stage)]

    def _script(self, name: str, stage: str, *more: str, array: int | None = None) -> Script:
        place = cluster_folder(self.folder)
        log = f"{name}-{'%A_%a' if array else '%j'}.log"
        share = _Share.of(self.cluster, stage)
        options = "".join(f"#SBATCH {option}\n" for option in self._options(name, share, array, log))
        command = shlex.join(["modelwright", stage, str(self.config), "--registry", self.registry])
        line = " ".join([*filter(None, [self.cluster.container]), command, *more])
        ranks = _RANKS.format(size=share.nodes * share.tasks, local=share.tasks) if share.ranks else ""
        parts = (
            f"#!{'/bin/bash -l' if self.cluster.login_shell else '/usr/bin/env bash'}\n{options}",
            f"# The stage {name} of the run {self.folder.name}, as modelwright submit wrote it.\n",
            _BEGIN.format(prefix=shlex.quote(str(place / name))),
            "".join(f"{each}\n" for each in self._setup(share)) + ranks,
            _END.format(command=self._started(line, share)),
        )
        path, text = place / f"{name}.sbatch", "\n".join(parts)
        return Script(stage=name, path=path, text=text, array=array, nodes=share.nodes, requested=share.has)

    def _started(self, line: str, share: _Share) -> str:
        """A command line as `[cluster] srun` starts it."""
        if not self.cluster.srun:
            return line
        tasks = [f"--ntasks={share.nodes * share.tasks}", f"--ntasks-per-node={share.tasks}"]
        start = ["srun", f"--nodes={share.nodes}", *tasks, "--kill-on-bad-exit=1"]
        if share.has.cpus:  # srun does not inherit this from the job
            start.append(f"--cpus-per-task={share.cores}")
        start += [f"--{name}={value}" if value else f"--{name}" for name, value in self.cluster.srun.items()]
        return f"{shlex.join(start)} " + (f"bash -c {shlex.quote(f'{_RANK} {line}')}" if share.ranks else line)

    def _options(self, name: str, share: _Share, array: int | None, log: str) -> Iterator[str]:
        place = str(cluster_folder(self.folder)).replace("%", "%%")
        at_once = f"%{self.cluster.shards_at_once}" if self.cluster.shards_at_once else ""
        requested: dict[str, str | int | None] = {
            "job-name": f"{self.folder.name}/{name}",
            "output": f"{place}/{log}",
            "open-mode": "append",
            "chdir": str(self.directory),
            "array": array and f"1-{array}{at_once}",
            "partition": share.has.partition,
            "account": share.has.account,
            "qos": share.has.qos,
            "time": share.has.time,
            "nodes": share.nodes,
            "ntasks-per-node": share.tasks,
            "cpus-per-task": share.cores,
            "mem": share.has.memory,
            "gpus-per-node": share.has.gpus_per_node,
            "requeue": "",
            "signal": f"B:USR1@{self.cluster.stop_before}",
            **share.has.sbatch,
        }
        for option, value in requested.items():
            if value is not None:
                yield f"--{option}={_quoted(str(value))}" if value != "" else f"--{option}"

    def _setup(self, share: _Share) -> Iterator[str]:
        cluster = self.cluster
        yield f"export MODELWRIGHT_HOME={shlex.quote(str(self.home))}"
        programs = Path(sys.executable).parent
        if (programs / "modelwright").exists():
            yield f'export PATH={shlex.quote(str(programs))}:"$PATH"'
        # If sbatch passes no variables on, srun would not pass these on either.
        yield "export SLURM_EXPORT_ENV=ALL"
        lines = [*cluster.prologue, *(f"module load {shlex.quote(module)}" for module in cluster.modules)]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
        if cluster.copy_to_nodes:
            copies = "; ".join(["set -e", 'mkdir -p "$MODELWRIGHT_LOCAL"', *map(_copied, cluster.copy_to_nodes)])
            nodes = f"--nodes={share.nodes} --ntasks={share.nodes}"
            start = f"srun {nodes} --ntasks-per-node=1 " if share.nodes > 1 else ""
            folder = cluster.local_folder
            lines.append(_COPIES.format(folder=folder, start=start, commands=shlex.quote(copies)).rstrip())
        lines += cluster.setup
        if lines:
            # Otherwise a failure here would show up later in a less clear message.
            yield from ("set -e", *lines, "set +e")


def _copied(path: str) -> str:
    """The command that copies a file or folder to a node's own disk, or unpacks it there."""
    archive = ".tar" in Path(path).suffixes or Path(path).suffix in (".tgz", ".tbz", ".txz")
    command = "tar -xf {0} -C" if archive else "cp -R {0}"
    return f'{command.format(shlex.quote(path))} "$MODELWRIGHT_LOCAL"'


def _quoted(value: str) -> str:
    """A value on an #SBATCH line, which sbatch reads much as a shell reads words."""
    if all(letter.isalnum() or letter in "-_.:,/@%=+[]()&|*" for letter in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
