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
from modelwright.core.workspace import RunFolder

SHARDS = "prepare-shards"

# How a job ends is for people and for `modelwright jobs`, which finds the record when Slurm has forgotten the job.
_RECORD = """\
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
began=$(date +%s)
# Slurm forgets a job minutes after its end; this line of it stays.
leave_record() {{
    printf '{{"job": "%s", "restarts": %d, "nodes": "%s", "began": %d, "ended": %d, "exit": %d}}\\n' \\
        "$job" "${{SLURM_RESTART_COUNT:-0}}" "$SLURM_JOB_NODELIST" "$began" "$(date +%s)" "$1" >> {prefix}-"$job".end
}}
trap 'leave_record $?' EXIT
"""

_WORK = """\
# Slurm tells this shell that the time limit is near (USR1), or that the job has to make way (TERM): the run hears it,
# and stops at the next safe point. An exit code above 128 is a run that had not begun to listen.
stopping=
run=
pass_on() {{
    stopping=1
    [ -z "$run" ] || kill -s "$1" "$run" 2>/dev/null
}}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
{command} &
run=$!
[ -z "$stopping" ] || kill -s TERM "$run"
while kill -0 "$run" 2>/dev/null; do wait "$run"; done
wait "$run"
code=$?
if [ -n "$stopping" ] && {{ [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }} &&
    [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    # It is neither cancelled nor over its limit: it goes on where it stopped.
    scontrol requeue "$SLURM_JOB_ID"
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
            _RECORD.format(prefix=shlex.quote(str(place / stage))),
            "".join(f"{each}\n" for each in self._setup()),
            _WORK.format(command=line),
        )
        return Script(stage=stage, path=place / f"{stage}.sbatch", text="\n".join(parts), array=array, log=log)

    def _options(self, stage: str, array: int | None, place: Path, log: str) -> Iterator[str]:
        cluster = self.cluster
        gpus = {"train": cluster.gpus_per_node, "evaluate": cluster.gpus_per_node and 1}.get(stage)
        asked: dict[str, str | int | bool | None] = {
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
            "requeue": True,
            "signal": f"B:USR1@{cluster.stop_before}",
            **cluster.sbatch,
        }
        for name, value in asked.items():
            if value is True:
                yield f"--{name}"
            elif value is not None and value is not False:
                yield f"--{name}={_quoted(str(value))}"

    def _setup(self) -> Iterator[str]:
        yield f"export MODELWRIGHT_HOME={shlex.quote(str(self.home))}"
        programs = Path(sys.executable).parent
        if (programs / "modelwright").exists():
            yield f'export PATH={shlex.quote(str(programs))}:"$PATH"'
        yield "set -e"
        yield from (f"module load {shlex.quote(module)}" for module in self.cluster.modules)
        yield from (f"export {name}={shlex.quote(value)}" for name, value in self.cluster.environment.items())
        yield from self.cluster.setup
        yield "set +e"


def _quoted(value: str) -> str:
    """A value on an #SBATCH line, which sbatch splits at blanks and ends at a `#`; it reads quotes as a shell does."""
    return value if all(letter.isalnum() or letter in "-_.:,/@%=+[]()&|*" for letter in value) else f'"{value}"'
