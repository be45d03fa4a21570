"""`modelwright run`, and the commands of its stages that take a run.toml and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError, UsageError
from modelwright.core.api.wording import listed
from modelwright.core.cli.common import Command, json_option, print_json, print_table, registry_option, run_options

if TYPE_CHECKING:
    from modelwright.core.runner import Result
    from modelwright.core.runs.stage import Listener, Run
    from modelwright.core.stages.evaluate.stage import Ranking
    from modelwright.core.stages.train.external_launcher import LauncherProcess
    from modelwright.core.stages.train.verify_resume import Verification

STAGES = ("prepare", "train", "register", "evaluate", "promote")


def stage_options(command: Command, *, required: bool = True) -> Command:
    """What `run` and the commands of its stages have in common; `required`: whether RUN.toml must be given."""
    fresh = click.option(
        "--fresh", is_flag=True, help="Discard earlier results and start over. Registered models stay."
    )
    dry = click.option("--dry-run", is_flag=True, help="Print which stages would run and why, and do nothing.")
    return run_options(registry_option(dry(fresh(json_option(command)))), required=required)


@click.command()
@stage_options
@click.option("--only", type=click.Choice(STAGES), help="Run only this stage.")
def run(only: str | None, **given: Any) -> int:
    """Run the stages prepare, train, register, evaluate and promote for every variant of RUN.toml.

    Finished stages are skipped and interrupted ones resumed, so it is always safe to run the same command again.
    Ctrl-C stops at the next safe point with exit code 75.
    """
    return perform_stages(only, **given)


def _stage_command(stage: str, text: str) -> click.Command:
    @click.command(stage, help=text)
    @stage_options
    def command(**given: Any) -> None:
        perform_stages(stage, **given)

    return command


@click.command()
@stage_options
@click.option(
    "--verify-resume",
    is_flag=True,
    help="Instead of training, check with a few steps that a killed training resumes exactly.",
)
def train(verify_resume: bool, **given: Any) -> int:
    """Train the model of RUN.toml on the prepared tokens, or resume its training."""
    return _verify_resume(**given) if verify_resume else perform_stages("train", **given)


register = _stage_command("register", "Register the trained model of RUN.toml.")
promote = _stage_command("promote", "Point the alias of RUN.toml to the registered model if its condition holds.")


def open_runs(
    *,
    path: Path,
    variants: Sequence[str],
    overrides: Sequence[str],
    registry: str | None,
    listener: Listener | None = None,
) -> list[Run]:
    """The runs of every variant chosen, not checked yet."""
    from modelwright.core import runner
    from modelwright.core.config import read_run

    read = read_run(path, variants=variants or None, overrides=overrides)
    return [runner.open_run(each, read.plugins, registry=registry, listener=listener) for each in read.configs]


def perform_stages(
    only: str | None, *, dry_run: bool, fresh: bool, as_json: bool, merging: bool = False, **chosen: Any
) -> int:
    """Plan or do the stages of every variant chosen; gives the exit code.

    Args:
        only: one of `STAGES`; None for all.
        dry_run: plan only.
        fresh: forget what was done before.
        as_json: print JSON alone.
        merging: see `Run`.
        chosen: see `open_runs`.
    """
    from modelwright.core.stages.train.external_launcher import launcher_process

    how = {"dry_run": dry_run, "fresh": fresh, "as_json": as_json, "registry": chosen["registry"]}
    # The other stages share nothing: one process of a launcher's may well do them.
    here = launcher_process() if only in (None, "train") else None
    if here is not None:
        return _perform_in_launcher(here, only, chosen, how)
    _perform(open_runs(**chosen), only, merging=merging, **how)
    return 0


def _perform_in_launcher(
    here: LauncherProcess, only: str | None, chosen: Mapping[str, Any], how: Mapping[str, Any]
) -> int:
    """Train one run together with the other processes of a launcher; the first does all that is not training."""
    from modelwright.core.stages.train.external_launcher import check_training_only, leave_to_the_first
    from modelwright.core.stages.train.rendezvous import follow, leading

    try:
        runs = open_runs(**chosen)
        check_training_only(here, runs, only)
    except ModelwrightError as error:
        return leave_to_the_first(here, error)
    if here.rank:
        return 0 if how["dry_run"] else follow(runs[0].folder, here)
    if how["dry_run"]:
        _perform(runs, only, **how)
        return 0
    with leading(runs[0].folder, here) as first:
        _perform(runs, only, gather=first.gather, **how)
    return 0


def _perform(
    runs: Sequence[Run],
    only: str | None,
    *,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
    registry: str | None,
    merging: bool = False,
    gather: Callable[[Callable[[str], None]], None] | None = None,
) -> None:
    from modelwright.core import runner
    from modelwright.core.cli.progress import Display

    # A training on a cluster asks nothing of the registry's database: many nodes would, on a shared file system.
    runner.check(runs, [only] if only else runner.NAMES, registry=only != "train")
    names = [one.config.name for one in runs]
    runs = [one for one in runs if only is None or one.has(only)]
    if not runs:
        raise UsageError(f"there is nothing to {only}: {listed(names, 3)} sets train = false")
    if dry_run:
        _print_plan(runs, only, fresh=fresh, as_json=as_json)
        return
    results = []
    with Display() as display:
        for one in runs:
            one.listener, one.merging, one.gather = display, merging, gather
            results.append(runner.execute(one, only=only, fresh=fresh))
            if one is not runs[-1]:
                one.folder.check_stop()  # a request in this run's last moments has not reached the next one
    _print_results(results, registry, as_json=as_json)


def _verify_resume(*, dry_run: bool, fresh: bool, as_json: bool, **chosen: Any) -> int:
    """Verify every variant chosen; gives the exit code.

    Raises:
        UsageError: an option that says something else.
        ModelwrightError: a training does not resume as is promised.
    """
    from attrs import asdict

    from modelwright.core import runner
    from modelwright.core.cli.progress import Display
    from modelwright.core.stages.train.external_launcher import launcher_process, leave_to_the_first, refusal

    if here := launcher_process():
        return leave_to_the_first(here, refusal(here, "--verify-resume", "call it without the launcher"))
    if dry_run or fresh:
        flag = "--dry-run" if dry_run else "--fresh"
        raise UsageError(f"--verify-resume leaves the run's own training alone: leave out {flag}")
    with Display() as display:
        runs = [one for one in open_runs(**chosen, listener=display) if one.has("train")]
        runner.check(runs, ["train"])
        verified = {one.config.name: runner.verify(one) for one in runs}
    if as_json:
        print_json([{"run": name, **asdict(each), "passed": each.passed} for name, each in verified.items()])
    else:
        for name, each in verified.items():
            click.echo(f"{name}: {_verified(each)}")
    failed = [name for name, each in verified.items() if not each.passed]
    if failed:
        raise ModelwrightError(f"{', '.join(failed)}: the resumed training differs from the uninterrupted one")
    return 0


def _verified(one: Verification) -> str:
    """What came of a verification, in words."""
    same = {True: "the same", False: "different"}
    words = [f"{same[one.same_losses]} losses", f"{same[one.same_bytes]} bytes"]
    if one.same_examples is not None:
        words.insert(0, f"{same[one.same_examples]} examples")
    text = f"{one.kills} kills, {one.steps} steps: {', '.join(words)}"
    if not one.same_bytes:
        apart = one.relative_difference
        text += "; different tensors" if apart is None else f"; weights differ by {apart:.1e} of their norm"
        allowed = "must be identical" if one.exact_promised else "up to 1e-03 is allowed on a GPU or with compile"
        text += f" ({allowed})"
    return text


def _print_plan(runs: Sequence[Run], only: str | None, *, fresh: bool, as_json: bool) -> None:
    from modelwright.core import runner

    plans = {one.config.name: runner.plan_run(one, only=only, fresh=fresh) for one in runs}
    if as_json:
        print_json(
            {name: [{"stage": s.stage, "done": s.done, "why": s.why} for s in steps] for name, steps in plans.items()}
        )
        return
    rows = [
        (name if number == 0 else "", step.stage, "done" if step.done else "would run", step.why)
        for name, steps in plans.items()
        for number, step in enumerate(steps)
    ]
    print_table(("run", "stage", "plan", "why"), rows)


def _aliases(result: Result) -> str:
    """Those that point to the run's model now: somebody may have moved one since."""
    registered = result.outputs.get("register")
    if registered is None:
        return ""
    try:
        aliases = result.run.registry.get(registered["name"], registered["version"]).aliases
    except ModelNotFoundError:
        return ""
    return "\n".join(f"@{alias}" for alias in aliases)


def _print_results(results: Sequence[Result], registry: str | None, *, as_json: bool) -> None:
    from modelwright.core.cli.progress import named_figures
    from modelwright.core.stages.evaluate.stage import rank

    rankings = list(rank([result.run for result in results if "evaluate" in result.outputs]))
    if as_json:
        print_json(
            [
                {"run": r.run.config.name, "folder": str(r.run.folder.path), **r.outputs}
                | _behind(rankings, r.outputs.get("register", {}).get("address"))
                for r in results
            ]
        )
        return
    if not any(result.performed for result in results):
        click.echo("Nothing to do: all stages are done, and their inputs have not changed.")
    rows = []
    for result in results:
        registered = result.outputs.get("register", {})
        metrics = result.outputs.get("evaluate", {}).get("metrics", {})
        figures = [f"{suite}.{figure}" for suite, named in metrics.items() for figure in named_figures(named)]
        rows.append((registered.get("address", result.run.config.name), "\n".join(figures), _aliases(result)))
    if any(result.outputs.get("register") for result in results):
        print_table(("model", "metrics (95 % interval)", "alias"), rows)
    for ranking in rankings:
        _print_ranking(ranking)
    click.echo(f"Runs:      {results[0].run.folder.path.parent}")
    click.echo(f"Registry:  {results[0].run.registry_url}")
    addresses = [row[0] for row, result in zip(rows, results, strict=True) if result.outputs.get("register")]
    if addresses:
        names = " ".join(address.partition("@")[0] for address in addresses)
        click.echo("\nNext:")
        where = f" --registry {registry}" if registry else ""
        click.echo(f"  modelwright serve {names}{where}")
        click.echo(f"  modelwright chat --model {addresses[-1].partition('@')[0]}      (in another terminal)")


def _print_ranking(ranking: Ranking) -> None:
    """Which model is the best on a suite, and how far the others are from it."""
    from attrs import asdict

    from modelwright.core.stages.evaluate.report import figure_text

    rows = [
        (each.model, figure_text(asdict(each), signed=True), "yes" if each.sign else "no") for each in ranking.others
    ]
    columns = (f"{ranking.suite}.{ranking.metric}", f"difference from {ranking.leader} (95 % interval)", "significant")
    print_table(columns, rows)


def _behind(rankings: Sequence[Ranking], address: str | None) -> dict[str, Any]:
    """For JSON: how a model differs from the best one of each suite and metric, itself aside."""
    from attrs import asdict

    found = [
        {"suite": ranking.suite, "metric": ranking.metric, **asdict(each)}
        for ranking in rankings
        for each in ranking.others
        if each.model == address
    ]
    return {"comparisons": found} if found else {}
