"""Submitting runs: a batch script for each stage, checked by Slurm and queued in a chain; all of them or none.

A script is a whole, readable file that anyone may change and give to `sbatch` by hand.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tomli_w
from attrs import frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.files import working_directory
from modelwright.core.api.wording import either
from modelwright.core.cluster import slurm
from modelwright.core.cluster.jobs import Submitted, cluster_folder, log_of, read_submitted, write_submitted
from modelwright.core.config import to_plain
from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.runner import plan_run
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.stage import Run, pin_base

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
    [ -z "$run" ] || kill -s "$1" "$run" 2>/dev/null
}}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
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
class Script:
    """A batch script.

    Attributes:
        stage: its stage; `prepare-shards` are the array before `prepare`, which merges.
        path: where it is written.
        text: what is in it.
        array: number of tasks; None if it is not an array.
        log: what Slurm calls the file of its output, `%j` being the job's id.
    """

    stage: str
    path: Path
    text: str
    array: int | None
    log: str


@frozen(kw_only=True)
class Writer:
    """Writes the scripts of one run.

    Attributes:
        folder: the run's.
        cluster: the requested resources.
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
        requested: dict[str, str | int | None] = {
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
        for name, value in requested.items():
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
        # If sbatch passes no variables on, srun would not pass these on either.
        yield "export SLURM_EXPORT_ENV=ALL"
        if lines:
            # Otherwise a failure here would show up later in a less clear message.
            yield from ("set -e", *lines, "set +e")


def _quoted(value: str) -> str:
    """A value on an #SBATCH line, which sbatch reads much as a shell reads words."""
    if all(letter.isalnum() or letter in "-_.:,/@%=+[]()&|*" for letter in value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# Slurm's messages about jobs that it accepts and lets wait.
_LATER = ("down, drained or reserved", "not available now")


@frozen(kw_only=True)
class Submission:
    """The scripts of one run, and their jobs once they are queued.

    Attributes:
        run: the run.
        scripts: of the stages that are not done, in order.
        jobs: as many; none where nothing was submitted.
    """

    run: Run
    scripts: Sequence[Script]
    jobs: Sequence[Submitted] = ()


def write_scripts(run: Run) -> Submission:
    """Write the script of each stage that is not done, and the resolved run file that they read.

    A registry address or a hub id as base is resolved now: the jobs train what it means today, and the training never
    asks the registry.

    Raises:
        UsageError: the trainer cannot use what `[cluster]` asks for, or jobs of this run are in the queue.
        ModelwrightError: another process works in the run's folder, or it cannot be written.
    """
    cluster = run.config.cluster or ClusterConfig()
    _check_processes(run, cluster)
    _check_idle(run)
    writer = Writer(
        folder=run.folder,
        cluster=cluster,
        home=home.home(),
        registry=run.registry_url,
        directory=working_directory(),
    )
    stages = [step.stage for step in plan_run(run) if not step.done and step.stage not in _idle(run)]
    scripts = [script for stage in stages for script in writer.stage(stage)]
    with (
        files.failing_as(f"cannot write the scripts of {run.config.name} to {run.folder.path}"),
        run.folder.locked(),
    ):
        if run.config.model.base and run.base:
            pin_base(run.config.model.base, run.base, run.folder)
        files.write_text(writer.config, tomli_w.dumps(to_plain(run.config)))
        for script in scripts:
            files.write_text(script.path, script.text)
    return Submission(run=run, scripts=scripts)


def _idle(run: Run) -> list[str]:
    """The last stages, where there is nothing for them to do: no job waits in the queue for that."""
    if run.config.registry.promote:
        return []
    return ["promote"] if run.config.evaluate else ["evaluate", "promote"]


def _check_processes(run: Run, cluster: ClusterConfig) -> None:
    if not run.config.train:
        return
    name = run.config.train.trainer
    processes = cluster.nodes * (cluster.processes or 1)
    if processes > 1 and run.plugins.get(TrainerSpec, name).launcher == "python":
        raise UsageError(
            f"{run.config.name}: [cluster] requests {processes} processes, but trainer {name!r} runs in one: set one "
            'node and one process, or set trainer = "deepspeed" in [train]'
        )


def _check_idle(run: Run) -> None:
    tasks = {task: job.stage for job in read_submitted(run.folder) for task in job.tasks}
    if not tasks:
        return
    queue = slurm.queued(sorted({task.partition("_")[0] for task in tasks}))
    for task, stage in tasks.items():
        if task in queue and queue[task].state not in slurm.ENDED:
            raise UsageError(
                f"{run.config.name} is already submitted: its job {task} ({stage}) is {queue[task].state}; wait for "
                f"it, or cancel it with modelwright jobs cancel {run.config.name}"
            )


def submit(submissions: Sequence[Submission]) -> list[Submission]:
    """Queue the scripts of each submission, every one after the one before it.

    Slurm checks every script first; if it refuses one while they are queued, those before it are cancelled.

    Raises:
        UsageError: Slurm would never run one of the scripts.
        ModelwrightError: Slurm refused one all the same, or does not answer.
    """
    slurm.need()
    for submission in submissions:
        for script in submission.scripts:
            _look(submission.run, script)
    queued: list[str] = []
    try:
        return [_chain(submission, queued) for submission in submissions]
    except BaseException:
        if queued:
            slurm.cancel(queued)
        raise


def _chain(submission: Submission, queued: list[str]) -> Submission:
    jobs: list[Submitted] = []
    for script in submission.scripts:
        after = (jobs[-1].job,) if jobs else ()
        try:
            job = slurm.submit(script.path, after)
        except ModelwrightError as error:
            raise ModelwrightError(_refused(submission.run, script, str(error))) from error
        queued.append(job)
        jobs.append(Submitted(stage=script.stage, job=job, array=script.array, after=after))
        write_submitted(submission.run.folder, jobs)
    return Submission(run=submission.run, scripts=submission.scripts, jobs=jobs)


def _look(run: Run, script: Script) -> None:
    said = slurm.test(script.path)
    if said is None or any(words in said for words in _LATER):
        return
    cluster = run.config.cluster or ClusterConfig()
    nodes = cluster.nodes if script.stage == "train" else 1
    where = f"partition {cluster.partition}" if cluster.partition else "the default partition"
    has = slurm.partition(cluster.partition)
    there = slurm.partitions()
    unknown = [name for name in (cluster.partition or "").split(",") if name and name not in there]
    if unknown:
        said = f"there is no partition {unknown[0]!r}: set [cluster] partition to {either(there)}"
    elif has and nodes > has.nodes:
        said = f"{where} has {has.nodes} nodes, and [cluster] nodes is {nodes}"
    elif "node configuration" in said:
        if has and has.away:
            return  # The nodes may come back; until then the job waits, and `modelwright jobs` says for what.
        said += f": no node of {where} has what [cluster] requests (cpus, memory, gpus_per_node, sbatch)"
    for word, key in (("account", "account"), ("qos", "qos"), ("time limit", "time"), ("feature", "sbatch.constraint")):
        if word in said.lower() and "[cluster]" not in said:
            said += f": check [cluster] {key}"
            break
    raise UsageError(_refused(run, script, said))


def _refused(run: Run, script: Script, said: str) -> str:
    return f"{run.config.name}: Slurm refuses the job for {script.stage}: {said} (script: {script.path})"


def log_pattern(submission: Submission, job: Submitted) -> str:
    """Where a job's output goes, for people."""
    return str(log_of(submission.run.folder, job.stage, f"{job.job}_*" if job.array else job.job))
