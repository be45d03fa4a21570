"""`modelwright submit`, which queues a run as jobs of Slurm, and `modelwright jobs`, which shows how they are doing."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from modelwright.core.cli.common import json_option, print_json, print_table, registry_option, run_options

if TYPE_CHECKING:
    from modelwright.core.cluster.jobs import JobView
    from modelwright.core.cluster.submit import Submission
    from modelwright.core.runs.folder import RunFolder


@click.command()
@run_options
@registry_option
@click.option("--print", "only_print", is_flag=True, help="Write the scripts without submitting them.")
@click.option("--dry-run", is_flag=True, help="Print which jobs would be submitted and what they request.")
@json_option
def submit(
    path: Path,
    variants: Sequence[str],
    overrides: Sequence[str],
    registry: str | None,
    only_print: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit a chain of Slurm jobs for every variant of RUN.toml: one job for each stage that is not done.

    The table [cluster] sets what the jobs request, [cluster.STAGE] what those of one stage do. A job starts when the
    one before it has succeeded. Scripts and logs are in the folder slurm of the run. --print and --dry-run also work
    without Slurm; with it, --dry-run lets it check the jobs. Follow them with: modelwright jobs RUN.
    """
    from modelwright.core import runner
    from modelwright.core.cluster import slurm
    from modelwright.core.cluster import submit as submitting
    from modelwright.core.config import read_run

    if only_print and dry_run:
        raise click.UsageError("--print writes the scripts, and --dry-run writes nothing: choose one of them.")
    read = read_run(path, variants=variants or None, overrides=overrides)
    runs = [runner.open_run(config, read.plugins, registry=registry) for config in read.configs]
    contained = all(run.config.cluster and run.config.cluster.contained for run in runs)
    # What the stages need is in the container then, and not on the machine that submits.
    runner.check(runs, () if contained else runner.NAMES)
    submissions = [submitting.scripts_of(run) for run in runs]
    for line in dict.fromkeys(line for each in submissions for line in submitting.hints(each)):
        click.echo(f"note: {line}", err=True)
    if dry_run:
        if slurm.installed():
            submitting.check(submissions)
        _print_requests(submissions, as_json=as_json)
        return
    if not only_print:
        slurm.need()
        for run in runs:
            submitting.check_idle(run)
    for each in submissions:
        submitting.write(each)
    if not only_print:
        submissions = submitting.submit(submissions)
    _print_submissions(submissions, only_print=only_print, as_json=as_json)


_NOTHING = "Nothing to do: all stages are done, and their inputs have not changed."


def _print_requests(submissions: Sequence[Submission], *, as_json: bool) -> None:
    from attrs import asdict

    rows = [
        {"run": each.run.config.name, "stage": script.stage, "array": script.array, "nodes": script.nodes}
        | asdict(script.requested)
        for each in submissions
        for script in each.scripts
    ]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(_NOTHING)
    else:
        columns = ("run", "stage", "nodes", "gpus_per_node", "cpus", "memory", "partition", "time")
        print_table(columns, [["" if row[name] is None else str(row[name]) for name in columns] for row in rows])


def _print_submissions(submissions: Sequence[Submission], *, only_print: bool, as_json: bool) -> None:
    from attrs import asdict

    from modelwright.core.cluster.submit import log_pattern

    names = [submission.run.config.name for submission in submissions if submission.scripts]
    scripts = [
        (submission.run.config.name, script.stage, str(script.path))
        for submission in submissions
        for script in submission.scripts
    ]
    jobs = [
        (submission.run.config.name, job, log_pattern(submission, job))
        for submission in submissions
        for job in submission.jobs
    ]
    if as_json and only_print:
        print_json([{"run": run, "stage": stage, "script": path} for run, stage, path in scripts])
    elif as_json:
        print_json([{"run": run, **asdict(job), "log": log} for run, job, log in jobs])
    elif not scripts:
        click.echo(_NOTHING)
    elif only_print:
        print_table(("run", "stage", "script"), scripts)
    else:
        columns = ("run", "stage", "job", "after", "log")
        print_table(columns, [(run, job.stage, job.job, " ".join(job.after), log) for run, job, log in jobs])
        click.echo(f"Next:\n  modelwright jobs {' '.join(names)}")


class _ShowByDefault(click.Group):
    """A group that passes its arguments to `show` if the first is not a command: `modelwright jobs RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `show` before a RUN, and where there is none."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


_runs = click.argument("runs", metavar="RUN...", nargs=-1, required=True)
_variant = click.option("--variant", metavar="NAME", help="Only this variant of a run.toml. Default: all variants.")


@click.group(cls=_ShowByDefault, subcommand_metavar="[COMMAND] [RUN]...")
def jobs() -> None:
    """Show or cancel the Slurm jobs of a run, or print their logs.

    RUN is a run.toml (for all of its variants that were submitted), the name of a run (NAME-VARIANT for a variant), or
    its folder. The default COMMAND is show.
    """


@jobs.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@_variant
@json_option
def show(runs: Sequence[str], variant: str | None, as_json: bool) -> None:
    """Show the state of each job. Without RUN, shows the jobs of all runs in $MODELWRIGHT_HOME.

    Also the reason for that state, the run time, the number of restarts, the nodes and the log. States are Slurm's:
    PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT and others.
    """
    from modelwright.core import home
    from modelwright.core.cluster.jobs import look, submitted_runs

    found = look(_folders(runs, variant) if runs else submitted_runs())
    if as_json:
        print_json([{"run": folder.name, **_plain(view)} for folder, views in found for view in views])
    elif found:
        _print_jobs(found)
    else:
        click.echo(f"No run in {home.runs()} was submitted.")


@jobs.command()
@_runs
@_variant
@json_option
def cancel(runs: Sequence[str], variant: str | None, as_json: bool) -> None:
    """Cancel pending and running jobs. A running training writes a checkpoint if Slurm allows enough time."""
    from modelwright.core.cluster.jobs import cancel as end

    ended = end(_folders(runs, variant))
    if as_json:
        print_json([{"run": folder.name, "stage": view.stage, "job": view.job} for folder, view in ended])
        return
    for folder, view in ended:
        click.echo(f"cancelled {view.job}: {view.stage} of {folder.name} ({view.state})")
    if not ended:
        click.echo("Nothing to cancel: all jobs have ended.")


@jobs.command()
@click.argument("run", metavar="RUN")
@click.argument("stage", metavar="[STAGE]", required=False)
@click.option("--variant", metavar="NAME", help="The variant of a run.toml.")
@click.option("--follow", is_flag=True, help="Wait for the log to begin, and print it as it grows, until the job ends.")
def logs(run: str, stage: str | None, variant: str | None, follow: bool) -> None:
    """Print the log of a job.

    Without STAGE, prints the log of the job that failed, or else of the last one that started.
    """
    from modelwright.core.api.errors import UsageError
    from modelwright.core.api.wording import either

    folders = _folders([run], variant)
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise UsageError(f"{run} has several variants ({names}): choose one with --variant")
    chosen = partial(_logged, folders[0], stage)
    views, begun = chosen()
    stages = list(dict.fromkeys(view.stage for view in views))
    if stage is not None and stage not in stages:
        raise UsageError(f"{folders[0].name} has no job for stage {stage!r}: expected {either(stages)}")
    while follow and not begun and not all(view.ended for view in views):
        time.sleep(_POLL_SECONDS)
        views, begun = chosen()
    if not begun:
        which = f" for {stage}" if stage else ""
        raise UsageError(f"{folders[0].name}: no job{which} has a log yet: see modelwright jobs {folders[0].name}")
    for view in begun:
        click.echo(f"# {view.stage}, job {view.job}, {view.state}: {view.log}", err=True)
        with view.log.open(encoding="utf-8", errors="replace") as file:
            shutil.copyfileobj(file, sys.stdout)
            if follow and view is begun[-1]:
                _follow(file, partial(_ended, folders[0], view.job))


# Seconds between two looks at a log, and between two looks at its job.
_LOOK_SECONDS, _POLL_SECONDS = 0.5, 3.0


def _logged(folder: RunFolder, stage: str | None) -> tuple[Sequence[JobView], list[JobView]]:
    """The jobs of a run, and those whose logs are meant."""
    from modelwright.core.cluster.jobs import look

    [(_, views)] = look([folder])
    begun = [view for view in views if view.log.is_file() and stage in (None, view.stage)]
    if stage is None:
        begun = [view for view in begun if view.exit_code][:1] or begun[-1:]
    return views, begun


def _ended(folder: RunFolder, job: str) -> bool:
    from modelwright.core.cluster.jobs import look

    [(_, views)] = look([folder])
    return all(view.ended for view in views if view.job == job)


def _follow(log: TextIO, ended: Callable[[], bool]) -> None:
    """Print what comes to a log until its job has ended."""
    checked, over = time.monotonic(), False
    while not over:
        sys.stdout.flush()
        time.sleep(_LOOK_SECONDS)
        if time.monotonic() - checked >= _POLL_SECONDS:
            checked, over = time.monotonic(), ended()
        shutil.copyfileobj(log, sys.stdout)


def _folders(runs: Sequence[str], variant: str | None) -> list[RunFolder]:
    """The folders of the runs; of several variants, those that were submitted, if any were."""
    from modelwright.core.cluster.jobs import read_submitted
    from modelwright.core.runs.folder import find_runs

    found: list[RunFolder] = []
    for run in runs:
        folders = find_runs(run, variant)
        found += [folder for folder in folders if read_submitted(folder)] or folders
    return found


def _plain(view: JobView) -> dict[str, Any]:
    from attrs import asdict

    return asdict(view, value_serializer=lambda _one, _field, value: str(value) if isinstance(value, Path) else value)


def _print_jobs(found: Sequence[tuple[RunFolder, Sequence[JobView]]]) -> None:
    columns = ("run", "stage", "job", "state", "elapsed", "restarts", "nodes")
    groups = [(folder, list(_groups(views))) for folder, views in found]
    print_table(
        columns,
        [
            ("" if number else folder.name, *_cells(group))
            for folder, grouped in groups
            for number, group in enumerate(grouped)
        ],
    )
    for group in (group for _, grouped in groups for group in grouped):
        first = group[0]
        if first.why:
            click.echo(f"{_ids(group)} {first.stage}: {first.why}")
        if first.log.is_file() and (first.exit_code or not first.ended):
            click.echo(f"    log: {first.log}")


def _groups(views: Sequence[JobView]) -> Iterator[list[JobView]]:
    """Tasks of an array that fare alike share a row."""
    for _, alike in itertools.groupby(views, key=lambda view: (view.stage, view.state, view.why)):
        yield list(alike)


def _cells(group: Sequence[JobView]) -> tuple[str, ...]:
    first = group[0]
    nodes = dict.fromkeys(view.nodes for view in group if view.nodes)
    longest = max((view.elapsed or "" for view in group), key=lambda text: (len(text), text))
    return first.stage, _ids(group), first.state, longest, str(sum(view.restarts for view in group)), ",".join(nodes)


def _ids(group: Sequence[JobView]) -> str:
    array, _, _ = group[0].job.partition("_")
    return group[0].job if len(group) == 1 else f"{array}_[{','.join(view.job.partition('_')[2] for view in group)}]"
