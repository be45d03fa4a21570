"""Submitting runs: scripts are written, looked at by Slurm, and queued in a chain; all of them or none."""

from __future__ import annotations

from collections.abc import Sequence

import tomli_w
from attrs import frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.files import working_directory
from modelwright.core.cluster import slurm
from modelwright.core.cluster.records import Submitted, log_of, read_submitted, write_submitted
from modelwright.core.cluster.scripts import Script, Writer
from modelwright.core.config import to_plain
from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.runner import plan_run
from modelwright.core.runs.pinned import pin_base
from modelwright.core.runs.stage import Run

# What Slurm says of jobs that it takes all the same, and lets wait.
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
        files.failing_as(f"the scripts of {run.config.name} cannot be written to {run.folder.path}"),
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
    name = run.config.train.trainer
    processes = cluster.nodes * (cluster.processes or 1)
    if processes > 1 and run.plugins.get(TrainerSpec, name).launcher == "python":
        raise UsageError(
            f"{run.config.name}: [cluster] asks for {processes} processes, and trainer {name!r} runs in one: "
            "ask for one node and one process on it, or choose a trainer of many processes, such as deepspeed"
        )


def _check_idle(run: Run) -> None:
    tasks = {task: job.stage for job in read_submitted(run.folder) for task in job.tasks}
    if not tasks:
        return
    queue = slurm.queued(sorted({task.partition("_")[0] for task in tasks}))
    for task, stage in tasks.items():
        if task in queue and queue[task].state not in slurm.ENDED:
            raise UsageError(
                f"{run.config.name} is submitted already: its job {task} ({stage}) is {queue[task].state}; wait for "
                f"it, or end it with modelwright jobs cancel {run.config.name}"
            )


def submit(submissions: Sequence[Submission]) -> list[Submission]:
    """Queue the scripts of each submission, every one after the one before it.

    Slurm is asked about every script first; if it refuses one while they are queued, those before it are cancelled.

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
        said = f"there is no partition {unknown[0]!r} (there are: {', '.join(there)}): [cluster] partition"
    elif has and nodes > has.nodes:
        said = f"{where} has {has.nodes} nodes, and {nodes} are asked for: [cluster] nodes"
    elif "node configuration" in said:
        if has and has.away:
            return  # The nodes may come back; until then the job waits, and `modelwright jobs` says for what.
        said += f": no node of {where} has what [cluster] asks for (cpus, memory, gpus_per_node, sbatch)"
    for word, key in (("account", "account"), ("qos", "qos"), ("time limit", "time"), ("feature", "sbatch.constraint")):
        if word in said.lower() and "[cluster]" not in said:
            said += f": [cluster] {key}"
            break
    raise UsageError(_refused(run, script, said))


def _refused(run: Run, script: Script, said: str) -> str:
    return f"{run.config.name}: Slurm refuses the job of {script.stage}: {said} (the script: {script.path})"


def log_pattern(submission: Submission, job: Submitted) -> str:
    """Where a job's output goes, for people."""
    return str(log_of(submission.run.folder, job.stage, f"{job.job}_*" if job.array else job.job))
