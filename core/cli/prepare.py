"""`modelwright prepare`: the prepare stage of a run, or, without a RUN.toml, raw rows to files of examples."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelwright.core.cli.common import DiskPath, once, print_json, print_table
from modelwright.core.cli.run import open_runs, perform_stages, stage_options

if TYPE_CHECKING:
    from modelwright.core.stages.prepare.convert import Converted, Raw
    from modelwright.core.stages.prepare.reading import ShardSelection

EVENTS_EVERY = 1000

# The flags of the two ways to use the command; `--json` belongs to both.
_OF_A_RUN = {
    "variants": "--variant",
    "overrides": "--set",
    "registry": "--registry",
    "dry_run": "--dry-run",
    "fresh": "--fresh",
    "shard": "--shard",
    "merging": "--merge",
}
_OF_FILES = {
    "format_name": "--format",
    "all_formats": "--all-formats",
    "inputs": "--input",
    "output": "--output",
    "instruction": "--instruction",
    "limit": "--limit",
    "fraction": "--fraction",
    "seed": "--seed",
    "options": "--option",
    "max_rejected": "--max-rejected",
}


class _Share(click.FloatRange):
    """A number from 0 to 1; click's own range accepts NaN."""

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(min=0, max=1, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def _given_shard(context: click.Context, param: click.Parameter, values: Sequence[str]) -> ShardSelection | None:
    """A callback for `--shard I/N`.

    Raises:
        UsageError: it is something else.
    """
    from modelwright.core.api.errors import UsageError
    from modelwright.core.stages.prepare.reading import ShardSelection

    value = once(context, param, values)
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
    shard = ShardSelection(int(found[1]), int(found[2])) if found else None
    if shard is None or not 1 <= shard.number <= shard.of:
        raise UsageError(f"--shard {value!r}: expected I/N with I from 1 to N, such as 2/4")
    return shard


@click.command()
@functools.partial(stage_options, required=False)
@click.option(
    "--shard",
    "shard",
    multiple=True,
    callback=_given_shard,
    metavar="I/N",
    help="Prepare every N-th shard of the data, starting with the I-th; other jobs prepare the rest.",
)
@click.option(
    "--merge", "merging", is_flag=True, help="Combine what the --shard jobs prepared into the finished stage."
)
@click.option("--format", "format_name", metavar="NAME", help="Format that reads the rows, such as general or math.")
@click.option(
    "--all-formats",
    is_flag=True,
    help="Try every installed format; write OUTPUT/FORMAT.jsonl for each that can read the rows.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="PATH",
    help="File, glob or folder with rows. Repeatable.",
)
@click.option(
    "--output", metavar="PATH", type=DiskPath(), help="The .jsonl file to write; with --all-formats, a folder."
)
@click.option(
    "--instruction",
    metavar="TEXT",
    help="Prompt template: {question} stands for the question; without it, the text precedes the question.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Maximum number of rows to read from each input."
)
@click.option(
    "--fraction",
    type=_Share(min_open=True),
    metavar="X",
    default=1.0,
    help="Fraction of each input's rows to sample (0 to 1).",
)
@click.option("--seed", type=int, metavar="S", default=17, show_default=True, help="Random seed for --fraction.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an option of the format; VALUE is TOML. Repeatable.",
)
@click.option(
    "--max-rejected",
    type=_Share(),
    metavar="X",
    default=0.01,
    show_default=True,
    help="Fail if a larger fraction of the rows is rejected (0 to 1).",
)
@click.pass_context
def prepare(context: click.Context, /, path: Path | None, *, as_json: bool, **given: Any) -> None:
    """Turn raw rows into training tokens, or into files of examples.

    With RUN.toml: run the prepare stage of that run. Without: read raw files with --format (or --all-formats) and
    write examples as JSONL, which any run can read with the format general:

      modelwright prepare --format math --input raw.jsonl --output math.jsonl

    On a cluster, N jobs that share $MODELWRIGHT_HOME can prepare a run's data in parallel: start them with --shard 1/N
    to --shard N/N, then run once with --merge. The result is the same as that of a single job.
    """
    from modelwright.core.api.errors import UsageError

    def typed(names: Mapping[str, str]) -> str:
        default = click.core.ParameterSource.DEFAULT
        return ", ".join(flag for name, flag in names.items() if context.get_parameter_source(name) is not default)

    of_a_run, of_files = typed(_OF_A_RUN), typed(_OF_FILES)
    if path is not None:
        if of_files:
            raise UsageError(f"{path} already says what to prepare: remove {of_files}, or remove the file")
        shard, chosen = given["shard"], {name: given[name] for name in ("variants", "overrides", "registry")}
        how = {name: given[name] for name in ("dry_run", "fresh", "merging")}
        _check_together(shard, **how)
        if shard is None:
            perform_stages("prepare", path=path, as_json=as_json, **how, **chosen)
        else:
            _prepare_shard(shard, path=path, as_json=as_json, **chosen)
        return
    if of_a_run:
        raise UsageError(f"{of_a_run}: only valid with a RUN.toml")
    _prepare_files(as_json=as_json, **{name: given[name] for name in _OF_FILES})


def _check_together(shard: ShardSelection | None, *, merging: bool, fresh: bool, dry_run: bool) -> None:
    """Refuse options that contradict each other.

    Raises:
        UsageError: which, and what to do.
    """
    from modelwright.core.api.errors import UsageError

    if shard is not None and merging:
        raise UsageError("--shard and --merge exclude each other: run the --shard jobs first, then --merge once")
    if shard is not None and dry_run:
        raise UsageError("--shard has no --dry-run: it prepares shards without finishing the stage")
    if fresh and (shard is not None or merging):
        raise UsageError(
            "--fresh would discard what other jobs have prepared: remove it "
            "(to start over, run `modelwright cache prune --older-than 0` before the jobs)"
        )


def _prepare_shard(shard: ShardSelection, *, as_json: bool, **chosen: Any) -> None:
    """Prepare the selected shards of every chosen variant."""
    from modelwright.core import runner
    from modelwright.core.cli.progress import Display
    from modelwright.core.stages.prepare.preparation import prepare_shards

    with Display() as display:
        runs = open_runs(**chosen, listener=display)
        runner.check(runs, ["prepare"], registry=False)
        done = []
        for one in runs:
            done.append({"run": one.config.name, **prepare_shards(one, shard)})
            if one is not runs[-1]:
                one.folder.shard(shard.number, shard.of).check_stop()  # as between whole runs
    if as_json:
        print_json(done)


def _prepare_files(
    *,
    format_name: str | None,
    all_formats: bool,
    inputs: Sequence[str],
    output: Path | None,
    instruction: str | None,
    options: Sequence[str],
    as_json: bool,
    **drawn: Any,
) -> None:
    from modelwright.core.api.components import FormatSpec
    from modelwright.core.api.errors import ModelwrightError, UsageError
    from modelwright.core.plugins import discover
    from modelwright.core.stages.prepare import convert

    if (format_name is None) == (not all_formats) or not inputs or output is None:
        raise UsageError("give a RUN.toml, or --input and --output with --format or --all-formats")
    if all_formats and options:
        raise UsageError("--option needs --format: it cannot be combined with --all-formats")
    plugins = discover()
    raw = _raw(inputs, **drawn)
    progress = _Progress()
    with progress.display:
        if format_name is None:
            results = convert.convert_all(raw, plugins, output, progress, instruction=instruction)
        else:
            spec = plugins.get(FormatSpec, format_name)
            reader = convert.make_format(spec, convert.parse_options(options), instruction=instruction)
            results = [convert.convert(raw, reader, format_name, output, progress)]
    _print(results, as_json=as_json)
    if not any(result.output for result in results):
        raise ModelwrightError("no installed format can read these rows; see the reasons above")


def _raw(inputs: Sequence[str], *, limit: int | None, fraction: float, seed: int, max_rejected: float) -> Raw:
    from modelwright.core.stages.prepare.convert import Raw, given_source

    sources = [given_source("--input", path, limit=limit, fraction=fraction) for path in inputs]
    return Raw(sources=sources, seed=seed, max_rejected=max_rejected)


class _Progress:
    """Shows the number of rows read so far, as in a run."""

    def __init__(self) -> None:
        from modelwright.core.cli.progress import Display

        self.display = Display()

    def __call__(self, name: str, rows: int) -> None:
        """Show it every `EVENTS_EVERY` rows."""
        from modelwright.core.runs.events import VERSION, Event

        if rows % EVENTS_EVERY == 0:
            data = {"rows": rows}
            self.display(Event(v=VERSION, time="", run=name, stage="prepare", writer="", kind="reading", data=data))


def _print(results: Sequence[Converted], *, as_json: bool) -> None:
    from attrs import asdict

    if as_json:
        print_json([asdict(result, value_serializer=_plain) for result in results])
        return
    written = [result for result in results if result.output]
    if written:
        rows = [
            (one.format, *(f"{n:,}" for n in (one.rows, one.examples, one.duplicates, one.rejected)), str(one.output))
            for one in written
        ]
        print_table(("format", "rows", "examples", "duplicates", "rejected", "output"), rows)
    for result in results:
        if result.rejected_file:
            click.echo(f"{result.format}: rejected rows and reasons are in {result.rejected_file}")
        if result.reason:
            click.echo(f"{result.format} cannot read these rows: {result.reason}")


def _plain(_instance: object, _attribute: object, value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
