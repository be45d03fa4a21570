"""`modelwright models list`, `show`, `compare` and `card`: commands that only read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from attrs import asdict

from modelwright.core.api.components import MetricSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.files import failing_as, why_no_file, write_text
from modelwright.core.api.registry import ModelVersion
from modelwright.core.cli.common import (
    DiskPath,
    figure_text,
    json_option,
    print_json,
    print_table,
    registry_option,
    size_text,
)
from modelwright.core.cli.models.shared import (
    alias_text,
    figure,
    found,
    metric_pairs,
    opened,
    print_pairs,
    short,
    summary,
    text,
)
from modelwright.core.config.metrics import metric_name
from modelwright.core.models.adapters import base_name
from modelwright.core.plugins import Plugins, discover
from modelwright.core.registry import naming, resolve
from modelwright.core.registry.card import model_card
from modelwright.core.registry.compare import Comparison, Difference, MetricComparison, flat
from modelwright.core.registry.compare import compare as compare_versions
from modelwright.core.registry.record import PACKAGE, TELLING


@click.command("list")
@registry_option
@json_option
def list_(registry: str | None, as_json: bool) -> None:
    """List all model versions with their aliases and metrics."""
    models, url = opened(registry)
    versions = models.find()
    if as_json:
        print_json([summary(version) for version in versions])
    elif versions:
        _print_list(versions)
    elif models.events():
        click.echo(f"All models in {url} have been deleted; their history is kept")
    else:
        # Every change is in a registry's history, so without one there is no registry.
        click.echo(f"There is no registry at {url} yet; registering the first model creates it")


def _print_list(versions: Sequence[ModelVersion]) -> None:
    """A table with a column for each metric, or a block for each model if the terminal is too narrow."""
    from rich.console import Console

    measured = sorted(
        {(suite, metric) for version in versions for suite, figures in version.metrics.items() for metric in figures}
    )
    columns = ["model", "aliases", *(f"{text(suite)}\n{text(metric)}" for suite, metric in measured), "created (UTC)"]
    rows = [
        [
            version.address,
            " ".join(f"@{alias}" for alias in version.aliases),
            *(figure(version.metrics.get(suite, {}).get(metric)) for suite, metric in measured),
            f"{version.created:%Y-%m-%d %H:%M}",
        ]
        for version in versions
    ]
    console = Console()
    if not console.is_terminal or _width(columns, rows) <= console.width:
        print_table(columns, rows)
        return
    for version in versions:
        _print_block(version, f"{version.created:%Y-%m-%d %H:%M} UTC")


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The characters of a table's widest line, three of them between columns."""
    lines = [[max(map(len, column.split("\n"))) for column in columns], *([len(cell) for cell in row] for row in rows)]
    return sum(max(widths) + 3 for widths in zip(*lines, strict=True))


def _print_block(version: ModelVersion, note: str) -> None:
    names = [alias_text(alias) for alias in version.aliases]
    click.echo("  ".join([click.style(version.address, bold=True), *names, click.style(note, dim=True)]))
    print_pairs(metric_pairs(version))
    click.echo()


@click.command()
@click.argument("address")
@registry_option
@json_option
def show(address: str, registry: str | None, as_json: bool) -> None:
    """Show everything that the registry knows about a model.

    ADDRESS is NAME (its newest version), NAME@3 or @ALIAS.
    """
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    if as_json:
        print_json(_everything(version))
    else:
        _print_version(version)


def _everything(version: ModelVersion) -> dict[str, Any]:
    model = version.model
    return {
        **summary(version),
        "created": version.created.isoformat(),
        "fingerprint": model.fingerprint,
        "base": model.base,
        "parent": model.parent,
        "adapter": version.is_adapter,
        "code_version": model.code_version,
        "files": [asdict(file) for file in version.files],
        "data": dict(model.data),
        "training": dict(model.training),
        "environment": dict(model.environment),
        "config": dict(model.config),
    }


def _print_version(version: ModelVersion) -> None:
    model = version.model
    names = [alias_text(alias) for alias in version.aliases]
    click.echo("  ".join([click.style(version.address, bold=True), *names]))
    tags = ", ".join(f"{key}={text(value)}" for key, value in model.tags.items())
    facts = {
        "created": f"{version.created:%Y-%m-%d %H:%M:%S} UTC",
        "digest": version.digest,
        "adapter of": base_name(version) if version.is_adapter else None,
        "base": model.base,
        "parent": model.parent,
        "made by": f"modelwright {model.code_version}" if model.code_version else None,
        "tags": tags,
    }
    print_pairs({key: text(value) for key, value in facts.items() if value})
    sections = {
        "metrics": metric_pairs(version),
        "training": _shown(model.training),
        "files": {file.path: f"{size_text(file.size):>9}   {short(file.sha256)}" for file in version.files},
        "data": {path: short(digest) for path, digest in model.data.items()},
        "config": _shown(model.config),
        "environment": _environment(model.environment),
    }
    for title, pairs in sections.items():
        if pairs:
            click.echo(f"\n{click.style(title, bold=True)}")
            print_pairs(pairs)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    packages = {key.removeprefix(PACKAGE): value for key, value in environment.items() if key.startswith(PACKAGE)}
    pairs = {key: value for key, value in environment.items() if not key.startswith(PACKAGE)}
    pairs |= {name: packages[name] for name in TELLING if name in packages}
    others = len(packages.keys() - set(TELLING))
    pairs = {key: text(value) for key, value in pairs.items()}
    return pairs | ({f"{others} more packages": "shown by --json"} if others else {})


def _shown(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested tables as dotted keys, without nulls."""
    return {key: text(value) for key, value in flat(values).items() if value is not None}


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS ADDRESS...")
@registry_option
@json_option
def compare(addresses: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Show how models differ, and which one is better.

    Each model is compared with the first. A metric is better or worse if the 95% interval of its difference excludes 0;
    the models are treated as measured on independent samples.
    """
    if len(addresses) < 2:
        raise UsageError(f"{addresses[0]!r} cannot be compared alone: give two or more addresses")
    plugins = discover()
    models, url = opened(registry, plugins)
    versions = found(models, url, addresses)
    comparison = compare_versions(versions, _directions(plugins))
    if as_json:
        print_json(asdict(comparison))
    elif len(versions) == 1:
        click.echo(f"{' and '.join(addresses)} are the same model: {versions[0].address}")
    else:
        _print(comparison, versions)


def _directions(plugins: Plugins) -> Callable[[str], bool | None]:
    def direction(metric: str) -> bool | None:
        try:
            return plugins.get(MetricSpec, metric_name(metric)).higher_is_better
        except ModelwrightError:
            # Not installed here, or two plugins claim the name: figures are shown without a verdict.
            return None

    return direction


def _print(comparison: Comparison, versions: Sequence[ModelVersion]) -> None:
    for version in versions:
        click.echo(f"{click.style(version.address, bold=True)}   {version.created:%Y-%m-%d %H:%M} UTC")
    if comparison.same_files:
        click.echo(f"\nThe files are identical ({short(versions[0].digest)}).")
    if comparison.metrics:
        _print_metrics(comparison)
    digests = {"data": comparison.data, "files": {} if comparison.same_files else comparison.files}
    same = {"data": comparison.same_data, "files": comparison.same_files_count}
    tables = {
        "lineage": comparison.lineage,
        "config": comparison.config,
        "training": comparison.training,
        "environment": comparison.environment,
        "tags": comparison.tags,
    }
    for title, rows in tables.items():
        _print_rows(title, comparison.models, rows, text)
    for title, rows in digests.items():
        note = f"{title} ({same[title]} more are identical)" if same[title] else title
        _print_rows(note, comparison.models, rows, short)
    if not comparison.same_files and not any((*tables.values(), comparison.data)):
        click.echo("\nTheir records do not differ.")


def _print_metrics(comparison: Comparison) -> None:
    others = comparison.models[1:]
    columns = ["metric", *comparison.models]
    columns += [f"{other}\nminus {comparison.models[0]}" if len(others) > 1 else "difference" for other in others]
    print_table(columns, [_metric_row(metric) for metric in comparison.metrics], title="metrics")


def _metric_row(metric: MetricComparison) -> list[str]:
    arrow = {True: "", False: " (lower is better)", None: " (direction unknown)"}[metric.higher_is_better]
    sizes = {each.n for each in metric.figures if each is not None}
    # Another number of examples means another test set, or another part of it.
    figures = [
        f"{figure(each)}{f', n = {each.n}' if each is not None and len(sizes) > 1 else ''}" for each in metric.figures
    ]
    return [
        f"{text(metric.suite)}.{text(metric.metric)}{arrow}",
        *figures,
        *map(_difference, metric.differences),
    ]


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    sign = "+" if difference.value > 0 else ""
    return f"{sign}{figure_text(difference.value, difference.low, difference.high)}: {difference.verdict}"


def _print_rows(
    title: str, models: Sequence[str], rows: Mapping[str, Sequence[Any]], shown: Callable[[Any], str]
) -> None:
    if rows:
        cells = [
            [text(key), *("–" if value is None else shown(value) for value in values)] for key, values in rows.items()
        ]
        print_table(["", *models], cells, title=title)


@click.command()
@click.argument("address")
@click.option("--output", type=DiskPath(), metavar="FILE", help="File to write; default: standard output.")
@registry_option
def card(address: str, output: Path | None, registry: str | None) -> None:
    """Write a model card in Markdown.

    It begins with the metadata header of the Hugging Face Hub.
    """
    if output is not None and (why := why_no_file(output)):
        raise UsageError(f"{output} {why}: give the name of a file, or leave out --output for standard output")
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    text = model_card(version)
    if output is None:
        click.echo(text, nl=False)
        return
    with failing_as(f"{output} cannot be written"):
        write_text(output, text)
    click.echo(f"wrote {output}")
