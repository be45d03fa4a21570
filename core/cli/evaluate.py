"""`modelwright evaluate`: a run's stage of that name; or, without a run, registered models on test sets."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelwright.core.cli.common import DiskPath, figure_text, once, print_json, print_table
from modelwright.core.cli.run import perform_stages, stage_options

if TYPE_CHECKING:
    from modelwright.core.config.schema import EvalConfig
    from modelwright.core.plugins import Plugins
    from modelwright.core.stages.evaluate.evaluation import Evaluation

# The flags that only one form of the command takes.
_OF_A_RUN = {"variants": "--variant"}
_OF_FILES = {"overrides": "--set"}
_OF_FLAGS = {
    "all_models": "--all",
    "models": "--model",
    "data": "--data",
    "dataset": "--dataset",
    "config": "--config",
    "split": "--split",
    "revision": "--revision",
    "format_name": "--format",
    "options": "--option",
    "metrics": "--metric",
    "name": "--name",
    "limit": "--limit",
    "samples": "--samples",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "seed": "--seed",
}
_OUTPUT = {"output": "--output"}
# Options of every evaluation: of a file and of flags.
_HOW = ("dry_run", "fresh", "as_json")


@click.command()
@functools.partial(stage_options, required=False)
@click.option("--all", "all_models", is_flag=True, help="Evaluate the newest version of every model in the registry.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="ADDRESS",
    help="Model to evaluate: NAME, NAME@VERSION or @ALIAS. Repeatable.",
)
@click.option("--data", multiple=True, callback=once, metavar="PATH", help="Test set: a file, a glob or a folder.")
@click.option(
    "--dataset",
    multiple=True,
    callback=once,
    metavar="NAME",
    help="Test set that the package datasets reads, instead of --data: ORG/NAME on the Hugging Face hub, or a folder.",
)
@click.option("--config", metavar="NAME", help="Config (subset) of --dataset. Default: its only or its default one.")
@click.option("--split", metavar="SPLIT", help="Split of --dataset, such as test or test[:200]. Default: its only one.")
@click.option("--revision", metavar="REVISION", help="Branch, tag or commit of --dataset. Default: its main branch.")
@click.option(
    "--format", "format_name", metavar="F", help="Format of the test set. Default: the only format that can read it."
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an option of the format; VALUE is TOML. Repeatable.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="M",
    help="Metric that grades the answers: NAME, or NAME(KEY=VALUE, …) with options in TOML, such as "
    "'exact_match(ignore_case=true)'. Repeatable. Default: math_accuracy for the format math, otherwise exact_match.",
)
@click.option("--name", metavar="SUITE", help="Name of the test set in the registry. Default: derived from --data.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use only the first N examples.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Answers to generate per example. Default: 1.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Maximum length of an answer in tokens. Default: 256."
)
@click.option(
    "--temperature", type=click.FloatRange(min=0), metavar="T", help="Sampling temperature. Default: 0 (greedy)."
)
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Seed for sampling. Default: 17.")
@click.option("--output", metavar="DIR", type=DiskPath(), help="Folder for results.json, report.md and samples.jsonl.")
@click.pass_context
def evaluate(context: click.Context, /, path: Path | None, *, registry: str | None, **given: Any) -> None:
    """Evaluate registered models on test sets.

    Given a RUN.toml, evaluate that run's model on the run's own test sets. Given an EVAL.toml (a file with `models` and
    [[evaluate]], such as examples/eval.toml), evaluate the models in it on the test sets in it. Without a file, name
    the models with --all or --model and the test set with --data or --dataset:

      modelwright evaluate --all --data test.jsonl --format math --output results
      modelwright evaluate --all --dataset openai/gsm8k --config main --split test --output results

    Figures are recorded in the registry. Without a RUN.toml, results.json, report.md and samples.jsonl are
    also written to the folder --output. Addresses are resolved once, at the start. Run the same command again to
    resume: finished work is kept.
    """
    from modelwright.core.api.errors import UsageError
    from modelwright.core.config import is_eval_file

    def typed(*names: Mapping[str, str]) -> str:
        default = click.core.ParameterSource.DEFAULT
        flags = {name: flag for each in names for name, flag in each.items()}
        return ", ".join(flag for name, flag in flags.items() if context.get_parameter_source(name) is not default)

    if path is None:
        if extra := typed(_OF_A_RUN, _OF_FILES):
            raise UsageError(f"{extra} needs a file: give RUN.toml or EVAL.toml")
        _evaluate_flags(registry=registry, **given)
    elif is_eval_file(path):
        if extra := typed(_OF_FLAGS):
            raise UsageError(
                f"{path} already says what to evaluate: remove the file, or {extra} (--set changes its keys)"
            )
        if extra := typed(_OF_A_RUN):
            raise UsageError(f"{path} is an evaluation file, and those have no variants: remove {extra}")
        _evaluate_file(path, registry=registry, **given)
    else:
        if extra := typed(_OF_FLAGS, _OUTPUT):
            raise UsageError(
                f"{path} is a run file, which has its own model and test sets: remove the file, or {extra}"
            )
        keys = ("variants", "overrides", "dry_run", "fresh", "as_json")
        perform_stages("evaluate", path=path, registry=registry, **{key: given[key] for key in keys})


# The name that usage shows: the file may be left out, and be of either kind.
for _parameter in evaluate.params:
    if _parameter.name == "path":
        _parameter.metavar = "[RUN.toml | EVAL.toml]"


def _evaluate_file(
    path: Path, *, overrides: Sequence[str], output: Path | None, registry: str | None, **given: Any
) -> None:
    from modelwright.core import home
    from modelwright.core.config import read_eval

    read = read_eval(path, overrides=overrides)
    in_file = None if read.config.output is None else Path(read.config.output)
    output = output or in_file or home.home() / "evaluations" / path.stem
    _perform(read.config, read.plugins, output=output, registry=registry, **{key: given[key] for key in _HOW})


def _evaluate_flags(
    *,
    all_models: bool,
    models: Sequence[str],
    output: Path | None,
    registry: str | None,
    **given: Any,
) -> None:
    from modelwright.core.api.errors import UsageError
    from modelwright.core.plugins import discover
    from modelwright.core.stages.evaluate.from_flags import Flags, config_from_flags

    if all_models and models:
        raise UsageError("--all already means every model: remove --model")
    nothing = given["data"] is None and given["dataset"] is None
    if not (all_models or models) or nothing or output is None:
        raise UsageError(
            "give a RUN.toml or an EVAL.toml; or --all or --model ADDRESS, with --data PATH (or --dataset NAME) and "
            "--output DIR"
        )
    plugins = discover()
    names = _OF_FLAGS.keys() - {"all_models", "models"}
    flags = Flags(models="all" if all_models else models, **{name: given[name] for name in names})
    config, taken = config_from_flags(flags, plugins)
    how = {key: given[key] for key in _HOW}
    _perform(config, plugins, output=output, registry=registry, taken=taken, **how)


def _perform(
    config: EvalConfig,
    plugins: Plugins,
    *,
    output: Path,
    registry: str | None,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
    taken: Sequence[str] = (),
) -> None:
    from modelwright.core.api.errors import ModelwrightError
    from modelwright.core.cli.progress import Display
    from modelwright.core.stages.evaluate import evaluation as evaluations
    from modelwright.core.stages.requirements import check_packages

    check_packages("evaluate")
    evaluation = evaluations.open_evaluation(config, plugins, output=output, registry=registry)
    evaluations.check(evaluation, fresh=fresh)
    for line in taken:
        click.echo(line, err=True)
    if dry_run:
        _print_plan(evaluation, fresh=fresh, as_json=as_json)
        return
    with Display() as display:
        evaluation.listener = display
        results = evaluations.execute(evaluation, fresh=fresh)
    if as_json:
        print_json(results)
    else:
        _print_results(results, evaluation)
    if results["failed"]:
        many = len(results["failed"])
        raise ModelwrightError(
            f"{many} {'evaluation' if many == 1 else 'evaluations'} failed (see failed in "
            f"{evaluation.output / 'results.json'}): " + "; ".join(map(_failed, results["failed"]))
        )


def _failed(failure: Mapping[str, Any]) -> str:
    suite = f" on {failure['suite']}" if failure["suite"] else ""
    return f"{failure['model']}{suite}: {failure['error']}"


def _print_plan(evaluation: Evaluation, *, fresh: bool, as_json: bool) -> None:
    from attrs import asdict

    from modelwright.core.stages.evaluate.evaluation import plan

    planned = plan(evaluation, fresh=fresh)
    if as_json:
        print_json([asdict(task) for task in planned])
        return
    print_table(
        ("model", "suite", "plan"), [(task.model, task.suite, "done" if task.done else "would run") for task in planned]
    )


def _print_results(results: Mapping[str, Any], evaluation: Evaluation) -> None:
    columns = [(suite["name"], metric) for suite in results["suites"] for metric in suite["metrics"]]
    measured = {(each["model"], each["suite"]): each["metrics"] for each in results["results"]}
    best = {(each["suite"], each["metric"]): each["model"] for each in results["best"]}

    def cell(model: str, suite: str, metric: str) -> str:
        figure = measured.get((model, suite), {}).get(metric)
        if figure is None:
            return "failed"
        mark = " best" if best.get((suite, metric)) == model else ""
        return figure_text(figure["value"], figure["low"], figure["high"]) + mark

    rows = [
        (model["address"], *(cell(model["address"], suite, metric) for suite, metric in columns))
        for model in results["models"]
    ]
    if rows:
        print_table(("model", *(f"{suite}.{metric}" for suite, metric in columns)), rows, title="95 % intervals")
    click.echo(f"Report:    {evaluation.output / 'report.md'}")
    click.echo(f"Registry:  {evaluation.registry_url}")
