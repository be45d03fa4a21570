"""`modelwright models delete`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelwrightError, RegistryError, UsageError
from modelwright.core.api.registry import ModelVersion, parse_address
from modelwright.core.cli.common import json_option, print_json, registry_option
from modelwright.core.cli.models.shared import found, opened
from modelwright.core.models.adapters import needed_by


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@registry_option
@json_option
def delete(addresses: tuple[str, ...], yes: bool, registry: str | None, as_json: bool) -> None:
    """Take versions out of the registry; `models gc` then frees their files.

    ADDRESS is NAME@3, or NAME where it has one version. A version that an alias points to, or that an adapter needs, is
    not deleted, and the number of a deleted one is not given again.
    """
    models, url = opened(registry)
    versions = found(models, url, addresses)
    for address in addresses:
        _refuse_unclear(models, address)
    for version in versions:
        _refuse_under_alias(models, version)
        _refuse_needed(models, version, versions)
    if not yes:
        _ask(versions, url)
    for version in versions:
        models.delete(version.name, version.version)
        if not as_json:
            click.echo(f"deleted {version.address} (digest {version.digest})")
    if as_json:
        print_json([{"name": each.name, "version": each.version, "digest": each.digest} for each in versions])
    else:
        click.echo("its files are kept until: modelwright models gc" if len(versions) == 1 else _KEPT)


_KEPT = "their files are kept until: modelwright models gc"


def _refuse_unclear(models: Registry, address: str) -> None:
    parsed = parse_address(address)
    if parsed.name is None or parsed.version is not None:
        return
    numbers = [version.version for version in models.find(parsed.name)]
    if len(numbers) > 1:
        raise UsageError(
            f"{parsed.name} has {len(numbers)} versions: say which to delete, such as {parsed.name}@{numbers[-1]}"
        )


def _refuse_under_alias(models: Registry, version: ModelVersion) -> None:
    """The registry refuses as well; here it is known before anything is deleted, and with the commands that help."""
    if not version.aliases:
        return
    others = [each for each in models.find(version.name) if each.version != version.version]
    target = others[-1].address if others else "OTHER"
    commands = "; ".join(f"modelwright models alias {alias} {target}" for alias in version.aliases)
    names = " and ".join(f"'@{alias}'" for alias in version.aliases)
    verb = "points" if len(version.aliases) == 1 else "point"
    raise RegistryError(
        f"{version.address} cannot be deleted: {names} {verb} to it; point it to another model first: {commands}"
    )


def _refuse_needed(models: Registry, version: ModelVersion, deleted: Sequence[ModelVersion]) -> None:
    """A base goes with or after its adapters, which are nothing without it."""
    gone = {each.address for each in deleted}
    left = [each.address for each in needed_by(models, version) if each.address not in gone]
    if left:
        are = "is an adapter" if len(left) == 1 else "are adapters"
        raise RegistryError(
            f"{version.address} cannot be deleted: {', '.join(left)} {are} of it, and nothing without it; merge first "
            f"(modelwright models merge {left[0]}), and delete them together"
        )


def _ask(versions: Sequence[ModelVersion], url: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here whether to delete: add --yes")
    names = ", ".join(version.address for version in versions)
    if not click.confirm(f"Delete {names} from {url}?", err=True):
        raise ModelwrightError("nothing was deleted")
