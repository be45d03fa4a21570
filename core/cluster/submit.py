"""Submitting runs: their scripts are checked by Slurm and queued in a chain; all of them or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import tomli_w
from attrs import evolve, frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.files import working_directory
from modelwright.core.api.wording import either
from modelwright.core.cluster import slurm
from modelwright.core.cluster.jobs import Submitted, log_of, read_submitted, write_submitted
from modelwright.core.cluster.scripts import SHARDS, Script, Writer
from modelwright.core.config import to_plain
from modelwright.core.config.cluster import WHOLE_RUN, ClusterConfig, bytes_of
from modelwright.core.runner import plan_run
from modelwright.core.runs.stage import Run, pin_base
from modelwright.core.stages.requirements import check_job_memory

# Words of Slurm's messages, and the keys to check.
_KEYS = {"account": "account", "qos": "qos", "time limit": "time", "feature": "sbatch.constraint"}
# Slurm's messages about jobs that it accepts and lets wait.
_LATER = ("down, drained or reserved", "not available now")


@frozen(kw_only=True)
class Submission:
    """The scripts of one run, and their jobs once they are queued.

    Attributes:
        run: the run.
        writer: of its scripts.
        scripts: of the stages that are not done, in order.
        jobs: as many; none where nothing was submitted.
    """

    run: Run
    writer: Writer
    scripts: Sequence[Script]
    jobs: Sequence[Submitted] = ()


def scripts_of(run: Run) -> Submission:
    """The script of each stage that is not done; nothing is written, and Slurm is not asked.

    Raises:
        UsageError: the trainer cannot use what `[cluster]` asks for, or needs more memory.
    """
    cluster = run.config.cluster or ClusterConfig()
    _check_processes(run, cluster)
    _check_memory(run, cluster)
    writer = Writer(
        folder=run.folder,
        cluster=cluster,
        resolved=tomli_w.dumps(to_plain(run.config)),
        home=home.home(),
        registry=run.registry_url,
        directory=working_directory(),
    )
    stages = [step.stage for step in plan_run(run) if not step.done and step.stage not in _idle(run)]
    if cluster.one_job:
        stages = [WHOLE_RUN] if stages else []
    return Submission(run=run, writer=writer, scripts=[script for stage in stages for script in writer.stage(stage)])


def hints(submission: Submission) -> Iterator[str]:
    """What its jobs may lack, though Slurm would run them."""
    cluster = submission.run.config.cluster or ClusterConfig()
    if cluster.of("train").gpus and any(s.stage == "evaluate" and not s.requested.gpus for s in submission.scripts):
        yield (
            f"{submission.run.config.name} trains on GPUs, and evaluates without: set gpus_per_node = 1 in "
            "[cluster.evaluate] to use one"
        )


def write(submission: Submission) -> None:
    """Write the scripts, and the resolved run file that they read.

    A registry's address or a hub id as base is resolved now: the jobs train what it means today, and the training never
    asks the registry.

    Raises:
        ModelwrightError: another process works in the run's folder, or it cannot be written.
    """
    run, writer = submission.run, submission.writer
    with (
        files.failing_as(f"cannot write the scripts of {run.config.name} to {run.folder.path}"),
        run.folder.locked(),
    ):
        if run.config.model.base and run.base:
            pin_base(run.config.model.base, run.base, run.folder)
        files.write_text(writer.config, writer.resolved)
        for script in submission.scripts:
            files.write_text(script.path, script.text)


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


def _check_memory(run: Run, cluster: ClusterConfig) -> None:
    requested = cluster.of("train")
    limit = bytes_of(requested.memory) if requested.memory else 0  # 0 is all that a node has
    if limit and run.config.train:
        check_job_memory(run, limit, processes=cluster.processes or 1, gpus=requested.gpus > 0)


def check_idle(run: Run) -> None:
    """Check that no job of a run is in the queue.

    Raises:
        UsageError: one is.
        ModelwrightError: Slurm does not answer.
    """
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


def check(submissions: Sequence[Submission]) -> None:
    """Let Slurm check every script.

    Raises:
        UsageError: Slurm would never run one of them.
        ModelwrightError: Slurm does not answer.
    """
    for submission in submissions:
        for script in submission.scripts:
            _check(submission.run, script)


def submit(submissions: Sequence[Submission]) -> list[Submission]:
    """Queue the scripts of each submission, every one after the one before it.

    Slurm checks every script first; if it refuses one while they are queued, those before it are cancelled.

    Raises:
        UsageError: Slurm would never run one of the scripts.
        ModelwrightError: Slurm refused one all the same, or does not answer.
    """
    check(submissions)
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
    return evolve(submission, jobs=jobs)


def _check(run: Run, script: Script) -> None:
    said = slurm.test(script.text)
    if said is None or any(words in said for words in _LATER):
        return
    cluster, requested = run.config.cluster or ClusterConfig(), script.requested
    key = partial(cluster.key, script.stage if script.stage != SHARDS else "prepare")
    where = f"partition {requested.partition}" if requested.partition else "the default partition"
    there = slurm.partitions()
    unknown = [name for name in (requested.partition or "").split(",") if name and name not in there]
    has = slurm.partition(requested.partition)
    if unknown:
        said = f"there is no partition {unknown[0]!r}: set {key('partition')} to {either(there)}"
    elif has and script.nodes > has.nodes:
        said = f"{where} has {has.nodes} nodes, and [cluster] nodes is {script.nodes}"
    elif has and not any(requested.fits(gpus) for gpus in has.gpus):
        offered = either([f"gpu:{gpus}" for gpus in has.gpus if gpus]) if any(has.gpus) else "no GPUs"
        said = f"the nodes of {where} have {offered}, and {key('gpus_per_node')} requests gpu:{requested.gpus_per_node}"
    elif "node configuration" in said:
        if has and has.away:
            return  # The nodes may come back; until then the job waits, and `modelwright jobs` says for what.
        said += f": no node of {where} has what [cluster] requests (cpus, memory, gpus_per_node, sbatch)"
    for word, name in (
        ("account", "account"),
        ("qos", "qos"),
        ("time limit", "time"),
        ("feature", "sbatch.constraint"),
    ):
        if word in said.lower() and "[cluster" not in said:
            said += f": check {key(name)}"
            break
    raise UsageError(_refused(run, script, said))


def _refused(run: Run, script: Script, said: str) -> str:
    written = f" (script: {script.path})" if script.path.is_file() else ""
    return f"{run.config.name}: Slurm refuses the job for {script.stage}: {said}{written}"


def log_pattern(submission: Submission, job: Submitted) -> str:
    """Where a job's output goes, for people."""
    return str(log_of(submission.run.folder, job.stage, f"{job.job}_*" if job.array else job.job))
