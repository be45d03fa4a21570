"""A batch script for each stage of a run: what Slurm is asked for, what is set up, and the one command.

Each is a whole, readable file: whoever wants to may change it and give it to `sbatch` by hand.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.runs.folder import RunFolder

SHARDS = "prepare-shards"

# What every script begins with, before anything can fail or be signalled.
_BEGIN = """\
# Slurm forgets a job minutes after its end; this line about it stays.
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
began=$(date +%s)
leave_record() {{
    printf '{{"job": "%s", "restarts": %d, "nodes": "%s", "began": %d, "ended": %d, "exit": %d}}\\n' \\
        "$job" "${{SLURM_RESTART_COUNT:-0}}" "$SLURM_JOB_NODELIST" "$began" "$(date +%s)" "$1" \\
        >> {prefix}-"$job".end
}}
trap 'leave_record $?' EXIT

# Slurm tells this shell that the time limit is near (USR1), or that the job must make way (TERM). The run hears of it.
stopping=
run=
stop() {{
    stopping=1
    [ -z "$run" ] || kill -s "$1" "$run" 2>/dev/null
}}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
"""

# The command, and what its exit code means. One above 128 comes of a signal before the run had begun to listen.
_END = """\
code=75
if [ -z "$stopping" ]; then
    {command} &
    run=$!
    while kill -0 "$run" 2>/dev/null; do wait "$run"; done
    wait "$run"
    code=$?
fi

# 75: it has stopped at a safe point. Unless the job was cancelled, or is over its limit, it goes on there later.
# Slurm may still be at its signalling, and a busy controller may have to be asked again.
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
class Script:
    """A batch script.

    Attributes:
        stage: its stage; `prepare-shards` are the array before `prepare`, which merges.
        path: where it is written.
        text: what is in it.
        array: how many tasks; None where it is no array.
        log: what Slurm calls the file of its output, `%j` being the job's id.
    """

    stage: str
    path: Path
    text: str
    array: int | None
    log: str


def cluster_folder(folder: RunFolder) -> Path:
    """Where a run's scripts, and the logs and records of its jobs, are."""
    return folder.path / "slurm"


@frozen(kw_only=True)
class Writer:
    """Writes the scripts of one run.

    Attributes:
        folder: the run's.
        cluster: what is asked for.
        home: what `MODELWRIGHT_HOME` is for the jobs.
        registry: the registry's URL.
        directory: where the jobs run.
    """

    folder: RunFolder
    cluster: ClusterConfig
    home: Path
    registry: str
    directory: Path

    @property
    def config(self) -> Path:
        """The resolved run file: what is submitted stays as it is, though its source be edited."""
        return cluster_folder(self.folder) / "run.toml"

    def stage(self, stage: str) -> list[Script]:
        """The scripts of a stage: one, or two where many jobs prepare the data."""
        shards = self.cluster.prepare_shards
        if stage == "prepare" and shards > 1:
            share = f'--shard "$SLURM_ARRAY_TASK_ID"/{shards}'
            return [self._script(SHARDS, "prepare", share, array=shards), self._script(stage, stage, "--merge")]
        return [self._script(stage, stage)]

    def _script(self, stage: str, command: str, *more: str, array: int | None = None) -> Script:
        place = cluster_folder(self.folder)
        log = f"{stage}-{'%A_%a' if array else '%j'}.log"
        words = [*shlex.split(self.cluster.container or ""), "modelwright", command, str(self.config)]
        line = " ".join([shlex.join([*words, "--registry", self.registry]), *more])
        options = "".join(f"#SBATCH {option}\n" for option in self._options(stage, array, place, log))
        parts = (
            f"#!/usr/bin/env bash\n{options}",
            f"# The stage {stage} of the run {self.folder.name}, as modelwright submit wrote it.\n",
            _BEGIN.format(prefix=shlex.quote(str(place / stage))),
            "".join(f"{each}\n" for each in self._setup()),
            _END.format(command=line),
        )
        return Script(stage=stage, path=place / f"{stage}.sbatch", text="\n".join(parts), array=array, log=log)

    def _options(self, stage: str, array: int | None, place: Path, log: str) -> Iterator[str]:
        cluster = self.cluster
        gpus = {"train": cluster.gpus_per_node, "evaluate": cluster.gpus_per_node and 1}.get(stage)
        asked: dict[str, str | int | None] = {
            "job-name": f"{self.folder.name}/{stage}",
            "output": f"{str(place).replace('%', '%%')}/{log}",
            "open-mode": "append",
            "chdir": str(self.directory),
            "array": array and f"1-{array}",
            "partition": cluster.partition,
            "account": cluster.account,
            "qos": cluster.qos,
            "time": cluster.time,
            "nodes": cluster.nodes if stage == "train" else 1,
            "ntasks-per-node": 1,
            "cpus-per-task": cluster.cpus,
            "mem": cluster.memory,
            "gpus-per-node": gpus,
            "requeue": "",
            "signal": f"B:USR1@{cluster.stop_before}",
            **cluster.sbatch,
        }
        for name, value in asked.items():
            if value is not None:
                yield f"--{name}={_quoted(str(value))}" if value != "" else f"--{name}"

    def _setup(self) -> Iterator[str]:
        yield f"export MODELWRIGHT_HOME={shlex.quote(str(self.home))}"
        programs = Path(sys.executable).parent
        if (programs / "modelwright").exists():
            yield f'export PATH={shlex.quote(str(programs))}:"$PATH"'
        lines = [f"module load {shlex.quote(module)}" for module in self.cluster.modules]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in self.cluster.environment.items()]
        lines += self.cluster.setup
        # Where sbatch was told to pass no variables on, srun would pass none of these on either.
        yield "export SLURM_EXPORT_ENV=ALL"
        if lines:
            # What follows would fail in stranger words.
            yield from ("set -e", *lines, "set +e")


def _quoted(value: str) -> str:
    """A value on an #SBATCH line, which sbatch reads much as a shell reads words."""
    if all(letter.isalnum() or letter in "-_.:,/@%=+[]()&|*" for letter in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
