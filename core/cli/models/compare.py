"""`modelwright models compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from attrs import asdict

from modelwright.core.api.components import MetricSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.registry import ModelVersion
from modelwright.core.cli.common import figure_text, json_option, print_json, print_table, registry_option
from modelwright.core.cli.models.shared import figure, found, opened, short, text
from modelwright.core.config.metrics import metric_name
from modelwright.core.plugins import Plugins, discover
from modelwright.core.registry.compare import Comparison, Difference, MetricComparison
from modelwright.core.registry.compare import compare as compare_versions


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS ADDRESS...")
@registry_option
@json_option
def compare(addresses: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Show in what models differ, and which is better.

    The others are compared with the first one. A difference of a metric is decided where its 95 % interval does not
    hold 0; the models count as measured on independent samples.
    """
    if len(addresses) < 2:
        raise UsageError(f"nothing to compare {addresses[0]!r} with: name two models or more")
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
            # Not installed here, or two plugins claim the name: the figures are shown, a verdict is not given.
            return None

    return direction


def _print(comparison: Comparison, versions: Sequence[ModelVersion]) -> None:
    for version in versions:
        click.echo(f"{click.style(version.address, bold=True)}   {version.created:%Y-%m-%d %H:%M} UTC")
    if comparison.same_files:
        click.echo(f"\nThey are the same files ({short(versions[0].digest)}).")
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
        note = f"{title} ({same[title]} more are the same)" if same[title] else title
        _print_rows(note, comparison.models, rows, short)
    if not comparison.same_files and not any((*tables.values(), comparison.data)):
        click.echo("\nTheir records differ in nothing.")


def _print_metrics(comparison: Comparison) -> None:
    others = comparison.models[1:]
    columns = ["metric", *comparison.models]
    columns += [f"{other}\nless {comparison.models[0]}" if len(others) > 1 else "difference" for other in others]
    print_table(columns, [_metric_row(metric) for metric in comparison.metrics], title="metrics")


def _metric_row(metric: MetricComparison) -> list[str]:
    arrow = {True: "", False: " (less is better)", None: " (direction unknown)"}[metric.higher_is_better]
    sizes = {each.n for each in metric.figures if each is not None}
    # Of another number of examples: another test set, or another part of it.
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
