"""`modelwright models list | show | alias`."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from attrs import asdict

from modelwright.core import home
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelNotFoundError
from modelwright.core.api.records import Figure
from modelwright.core.api.registry import Alias, ModelVersion, check_alias
from modelwright.core.cli.common import figure_text, json_option, print_json, print_table, registry_option
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry, resolve
from modelwright.core.registry.environment import PACKAGE

# The packages that decide how a model behaves; `show` leaves the others to --json.
_TELLING = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "peft", "deepspeed", "math-verify")


@click.group()
def models() -> None:
    """List, show and alias registered models."""


@models.command("list")
@registry_option
@json_option
def list_(registry: str | None, as_json: bool) -> None:
    """List every version with its aliases and metrics."""
    opened, url = _open(registry)
    versions = opened.find()
    if as_json:
        print_json([_summary(version) for version in versions])
    elif versions:
        _print_list(versions)
    else:
        click.echo(f"No models yet in {url}")


@models.command()
@click.argument("address")
@registry_option
@json_option
def show(address: str, registry: str | None, as_json: bool) -> None:
    """Show all that is known of one model.

    ADDRESS is NAME (its newest version), NAME@3 or @ALIAS.
    """
    opened, url = _open(registry)
    with _naming(url):
        version = resolve(opened, address)
    if as_json:
        print_json(_everything(version))
    else:
        _print_version(version)


@models.command()
@click.argument("alias", required=False)
@click.argument("address", required=False)
@registry_option
@json_option
def alias(alias: str | None, address: str | None, registry: str | None, as_json: bool) -> None:
    """Point ALIAS to the model at ADDRESS. Without ADDRESS show where it points; without both list all aliases."""
    opened, url = _open(registry)
    if alias is None:
        _list_aliases(opened, url, as_json=as_json)
        return
    name = check_alias(alias.removeprefix("@"))
    if address is None:
        with _naming(url):
            target = resolve(opened, f"@{name}")
        found = opened.resolve(name)
        if as_json:
            print_json(asdict(found))
        else:
            click.echo(f"{_alias(name)} → {target.address}")
        return
    with _naming(url):
        target = resolve(opened, address)
    _set_alias(opened, name, target, as_json=as_json)


def _open(url: str | None) -> tuple[Registry, str]:
    url = home.registry_url(url)
    return open_registry(url, discover()), url


@contextlib.contextmanager
def _naming(url: str) -> Iterator[None]:
    """Add to "not found" in which registry: the wrong one is the likeliest reason."""
    try:
        yield
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error} in {url}") from error


def _set_alias(registry: Registry, alias: str, target: ModelVersion, *, as_json: bool) -> None:
    try:
        before: Alias | None = registry.resolve(alias)
    except ModelNotFoundError:
        before = None
    # With the generation, so that what is printed as the old place is where the alias moved from.
    after = registry.set_alias(alias, target.name, target.version, expected=before.generation if before else 0)
    previous = f"{before.name}@{before.version}" if before else None
    if as_json:
        print_json({**asdict(after), "previous": previous})
    elif previous == target.address:
        click.echo(f"{_alias(alias)} points to {target.address} already")
    else:
        click.echo(f"{_alias(alias)}: {previous or '(new)'} → {click.style(target.address, bold=True)}")


def _list_aliases(registry: Registry, url: str, *, as_json: bool) -> None:
    found = [registry.resolve(alias) for version in registry.find() for alias in version.aliases]
    found.sort(key=lambda alias: alias.alias)
    if as_json:
        print_json([asdict(alias) for alias in found])
    elif found:
        rows = [(f"@{alias.alias}", f"{alias.name}@{alias.version}", str(alias.generation)) for alias in found]
        print_table(("alias", "model", "generation"), rows)
    else:
        click.echo(f"No aliases yet in {url}; set one: modelwright models alias ALIAS NAME")


def _summary(version: ModelVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "aliases": list(version.aliases),
        "tags": dict(version.model.tags),
        "metrics": {
            suite: {metric: asdict(figure) for metric, figure in figures.items()}
            for suite, figures in version.metrics.items()
        },
    }


def _everything(version: ModelVersion) -> dict[str, Any]:
    model = version.model
    return {
        **_summary(version),
        "created": version.created.isoformat(),
        "fingerprint": model.fingerprint,
        "base": model.base,
        "parent": model.parent,
        "code_version": model.code_version,
        "files": [asdict(file) for file in version.files],
        "data": dict(model.data),
        "training": dict(model.training),
        "environment": dict(model.environment),
        "config": dict(model.config),
    }


def _print_list(versions: Sequence[ModelVersion]) -> None:
    """A table with a column for each metric; where that is wider than the terminal, a block for each model."""
    from rich.console import Console

    measured = sorted(
        {(suite, metric) for version in versions for suite, figures in version.metrics.items() for metric in figures}
    )
    columns = ["model", "aliases", *(f"{suite}\n{metric}" for suite, metric in measured), "created (UTC)"]
    rows = [
        [
            version.address,
            " ".join(f"@{alias}" for alias in version.aliases),
            *(_figure(version.metrics.get(suite, {}).get(metric)) for suite, metric in measured),
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
    names = [_alias(alias) for alias in version.aliases]
    click.echo("  ".join([click.style(version.address, bold=True), *names, click.style(note, dim=True)]))
    _print_pairs(_metric_pairs(version))
    click.echo()


def _print_version(version: ModelVersion) -> None:
    model = version.model
    names = [_alias(alias) for alias in version.aliases]
    click.echo("  ".join([click.style(version.address, bold=True), *names]))
    tags = ", ".join(f"{key}={_text(value)}" for key, value in model.tags.items())
    facts = {
        "created": f"{version.created:%Y-%m-%d %H:%M:%S} UTC",
        "digest": version.digest,
        "base": model.base,
        "parent": model.parent,
        "made by": f"modelwright {model.code_version}" if model.code_version else None,
        "tags": tags,
    }
    _print_pairs({key: value for key, value in facts.items() if value})
    sections = {
        "metrics": _metric_pairs(version),
        "training": _flat(model.training),
        "files": {file.path: f"{_size(file.size):>9}   {_short(file.sha256)}" for file in version.files},
        "data": {path: _short(digest) for path, digest in model.data.items()},
        "config": _flat(model.config),
        "environment": _environment(model.environment),
    }
    for title, pairs in sections.items():
        if pairs:
            click.echo(f"\n{click.style(title, bold=True)}")
            _print_pairs(pairs)


def _print_pairs(pairs: Mapping[str, str]) -> None:
    width = max(map(len, pairs), default=0)
    for key, value in pairs.items():
        click.echo(f"  {key:<{width}}   {value}")


def _metric_pairs(version: ModelVersion) -> dict[str, str]:
    return {
        f"{suite}.{metric}": f"{_figure(figure)}   n = {figure.n}"
        for suite, figures in version.metrics.items()
        for metric, figure in figures.items()
    }


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    packages = {key.removeprefix(PACKAGE): value for key, value in environment.items() if key.startswith(PACKAGE)}
    pairs = {key: value for key, value in environment.items() if not key.startswith(PACKAGE)}
    pairs |= {name: packages[name] for name in _TELLING if name in packages}
    others = len(packages.keys() - set(_TELLING))
    return pairs | ({f"{others} more packages": "--json shows them"} if others else {})


def _flat(value: Any, key: str = "") -> dict[str, str]:
    """Nested tables and arrays as `table.key` and `array[0].key`; what is null is left out."""
    if isinstance(value, Mapping) and (value or not key):
        return {
            name: text
            for inner, item in value.items()
            for name, text in _flat(item, f"{key}.{inner}" if key else inner).items()
        }
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return {name: text for at, item in enumerate(value) for name, text in _flat(item, f"{key}[{at}]").items()}
    if value is None:
        return {}
    return {key: _text(value)}


def _text(value: Any) -> str:
    """A string as it is, unless it would break the line or command the terminal; anything else as JSON."""
    if isinstance(value, str) and value and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False)


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return figure_text(figure.value, figure.low, figure.high)


def _size(size: int) -> str:
    if size < 1000:
        return f"{size:.0f} B"
    power = min(int(math.log10(size)) // 3, 4)
    return f"{size / 1000**power:.1f} {' kMGT'[power]}B"


def _short(digest: str) -> str:
    return f"sha256 {digest[:12]}…"


def _alias(alias: str) -> str:
    return click.style(f"@{alias}", fg="cyan")
