"""`modelwright submit`: a run.toml as jobs of Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelwright.core.cli.common import json_option, print_json, print_table, registry_option, run_options

if TYPE_CHECKING:
    from modelwright.core.cluster.submit import Submission


@click.command()
@run_options
@registry_option
@click.option("--print", "only_print", is_flag=True, help="Write the scripts, and submit nothing.")
@json_option
def submit(
    path: Path,
    variants: Sequence[str],
    overrides: Sequence[str],
    registry: str | None,
    only_print: bool,
    as_json: bool,
) -> None:
    """Queue what RUN.toml says as jobs of Slurm, one for each stage, for every variant.

    [cluster] of the file says what they ask for. A job begins when the one before it has ended well; stages that are
    done have none. The scripts, and the logs of the jobs, are in the folder slurm of the run. What becomes of them:
    modelwright jobs RUN.
    """
    from modelwright.core import runner
    from modelwright.core.cluster import slurm
    from modelwright.core.cluster import submit as submitting
    from modelwright.core.config import read_run

    read = read_run(path, variants=variants or None, overrides=overrides)
    runs = [runner.open_run(config, read.plugins, registry=registry) for config in read.configs]
    contained = all(run.config.cluster and run.config.cluster.container for run in runs)
    # What the stages need is in the container then, and not on the machine that submits.
    runner.check(runs, () if contained else runner.NAMES)
    if not only_print:
        slurm.need()
    submissions = [submitting.write_scripts(run) for run in runs]
    if not only_print:
        submissions = submitting.submit(submissions)
    _print(submissions, only_print=only_print, as_json=as_json)


def _print(submissions: Sequence[Submission], *, only_print: bool, as_json: bool) -> None:
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
        click.echo("Nothing to do: all of it is done, and nothing that it depends on has changed.")
    elif only_print:
        print_table(("run", "stage", "script"), scripts)
    else:
        columns = ("run", "stage", "job", "after", "log")
        print_table(columns, [(run, job.stage, job.job, " ".join(job.after), log) for run, job, log in jobs])
        click.echo(f"Next:\n  modelwright jobs {' '.join(names)}")
