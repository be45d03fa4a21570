"""`modelwright models alias`, `tag`, `delete`, `gc`, `verify` and `merge`: commands that change or check models."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click
from attrs import asdict

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError, RegistryError, UsageError
from modelwright.core.api.registry import Alias, ModelVersion, check_alias, check_tags, parse_address
from modelwright.core.cli.common import json_option, print_json, print_table, registry_option, size_text
from modelwright.core.cli.models.shared import alias_text, found, opened, print_pairs, summary, text
from modelwright.core.models.adapters import base_name, needed_by
from modelwright.core.models.finishing import DTYPES
from modelwright.core.models.merge import merge as merge_adapter
from modelwright.core.registry import naming, resolve


@click.command()
@click.argument("alias", required=False)
@click.argument("address", required=False)
@registry_option
@json_option
def alias(alias: str | None, address: str | None, registry: str | None, as_json: bool) -> None:
    """Point ALIAS to the model at ADDRESS.

    Without ADDRESS, show where ALIAS points; without both, list all aliases.
    """
    models, url = opened(registry)
    if alias is None:
        _list_aliases(models, url, as_json=as_json)
        return
    name = check_alias(alias.removeprefix("@"))
    if address is None:
        with naming(url):
            target = resolve(models, f"@{name}")
        found = models.resolve(name)
        if as_json:
            print_json(asdict(found))
        else:
            click.echo(f"{alias_text(name)} → {target.address}")
        return
    with naming(url):
        target = resolve(models, address)
    move_alias(models, name, target, as_json=as_json)


def move_alias(registry: Registry, alias: str, target: ModelVersion, *, as_json: bool, quiet: bool = False) -> None:
    """Point an alias to a model, and print the old and the new place unless `quiet`."""
    try:
        before: Alias | None = registry.resolve(alias)
    except ModelNotFoundError:
        before = None
    # With the generation, so that the alias really moved from the place that is printed.
    after = registry.set_alias(alias, target.name, target.version, expected=before.generation if before else 0)
    previous = f"{before.name}@{before.version}" if before else None
    if quiet:
        return
    if as_json:
        print_json({**asdict(after), "previous": previous})
    elif previous == target.address:
        click.echo(f"{alias_text(alias)} already points to {target.address}")
    else:
        click.echo(f"{alias_text(alias)}: {previous or '(new)'} → {click.style(target.address, bold=True)}")


def _list_aliases(registry: Registry, url: str, *, as_json: bool) -> None:
    found = [registry.resolve(alias) for version in registry.find() for alias in version.aliases]
    found.sort(key=lambda alias: alias.alias)
    if as_json:
        print_json([asdict(alias) for alias in found])
    elif found:
        rows = [(f"@{alias.alias}", f"{alias.name}@{alias.version}", str(alias.generation)) for alias in found]
        print_table(("alias", "model", "generation"), rows)
    else:
        click.echo(f"There are no aliases in {url} yet; set one: modelwright models alias ALIAS ADDRESS")


@click.command()
@click.argument("address")
@click.argument("tags", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="Remove this tag. Repeatable.")
@registry_option
@json_option
def tag(address: str, tags: tuple[str, ...], removed: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Show, set or remove the tags of a model.

    Without KEY=VALUE and --remove, show the tags of the model at ADDRESS.
    """
    changes = _changes(tags, removed)
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    missing = sorted(set(removed) - version.model.tags.keys())
    if missing:
        there = ", ".join(version.model.tags) or "none"
        raise UsageError(f"{version.address} has no tag {missing[0]!r} to remove (its tags: {there})")
    if changes:
        version = models.set_tags(version.name, version.version, changes)
    if as_json:
        print_json({"name": version.name, "version": version.version, "tags": dict(version.model.tags)})
        return
    click.echo(click.style(version.address, bold=True) + ("" if version.model.tags else " has no tags"))
    print_pairs({key: text(value) for key, value in version.model.tags.items()})


def _changes(tags: Iterable[str], removed: Iterable[str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {}
    for each in tags:
        key, equals, value = each.partition("=")
        if not equals:
            raise UsageError(
                f"{each!r} is not a tag: expected KEY=VALUE, such as team=nlp (to remove a tag: --remove KEY)"
            )
        if key in changes:
            raise UsageError(f"tag {key!r} is given twice")
        changes[key] = value
    for key in removed:
        if key in changes:
            raise UsageError(f"tag {key!r} is both set and removed")
        changes[key] = None
    check_tags(changes)
    return changes


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--yes", is_flag=True, help="Delete without asking for confirmation.")
@registry_option
@json_option
def delete(addresses: tuple[str, ...], yes: bool, registry: str | None, as_json: bool) -> None:
    """Delete versions from the registry.

    Their files stay on disk until `models gc`. ADDRESS is NAME@3, or NAME if it has one version. A version that an
    alias points to or an adapter needs cannot be deleted. The number of a deleted version is never used again.
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
        click.echo("its files stay on disk until you run modelwright models gc" if len(versions) == 1 else _KEPT)


_KEPT = "their files stay on disk until you run modelwright models gc"


def _refuse_unclear(models: Registry, address: str) -> None:
    parsed = parse_address(address)
    if parsed.name is None or parsed.version is not None:
        return
    numbers = [version.version for version in models.find(parsed.name)]
    if len(numbers) > 1:
        raise UsageError(
            f"{parsed.name} has {len(numbers)} versions: give the one to delete, such as {parsed.name}@{numbers[-1]}"
        )


def _refuse_under_alias(models: Registry, version: ModelVersion) -> None:
    """The registry refuses too; this check runs before anything is deleted, and its message has commands that help."""
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
    """A base is deleted with or after its adapters, which cannot be used without it."""
    gone = {each.address for each in deleted}
    left = [each.address for each in needed_by(models, version) if each.address not in gone]
    if left:
        are = "is an adapter" if len(left) == 1 else "are adapters"
        raise RegistryError(
            f"{version.address} cannot be deleted: {', '.join(left)} {are} of it and cannot be used without it; delete "
            f"them together, or merge first (modelwright models merge {left[0]})"
        )


def _ask(versions: Sequence[ModelVersion], url: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("cannot ask for confirmation without a terminal: add --yes to delete")
    names = ", ".join(version.address for version in versions)
    if not click.confirm(f"Delete {names} from {url}?", err=True):
        raise ModelwrightError("nothing was deleted")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show how much would be freed.")
@registry_option
@json_option
def gc(dry_run: bool, registry: str | None, as_json: bool) -> None:
    """Free the disk space of deleted models.

    Files that interrupted registrations left behind are deleted as well.
    """
    models, url = opened(registry)
    freed = models.collect(dry_run=dry_run)
    if as_json:
        print_json({**asdict(freed), "dry_run": dry_run})
        return
    word = "would be freed" if dry_run else "freed"
    files = "1 file" if freed.contents == 1 else f"{freed.contents} files"
    click.echo(f"{files} ({size_text(freed.size)}) {word} in {url}")


@click.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@registry_option
@json_option
def verify(addresses: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Check the files of models against their digests.

    All files of the models at ADDRESS are read; without ADDRESS, those of all models. The exit code is 1 if a file is
    missing, cut short or changed.
    """
    models, url = opened(registry)
    versions = found(models, url, addresses) if addresses else models.find()
    problems: dict[str, list[str]] = {}
    for version in versions:
        problems[version.address] = list(models.verify(version))
        if not as_json:
            _print(version.address, problems[version.address], len(version.files))
    wrong = [address for address, lines in problems.items() if lines]
    if as_json:
        print_json(
            [
                {"name": each.name, "version": each.version, "digest": each.digest, "problems": problems[each.address]}
                for each in versions
            ]
        )
    elif not versions:
        click.echo(f"There are no models in {url}.")
    if wrong:
        click.echo(
            f"error: {len(wrong)} of {len(problems)} models in {url} {'is' if len(wrong) == 1 else 'are'} damaged: "
            "restore the files from a backup, or register or import these models again",
            err=True,
        )
        sys.exit(1)


def _print(address: str, lines: list[str], files: int) -> None:
    click.echo(f"{click.style(address, bold=True)}   {'damaged' if lines else f'{files} files intact'}")
    for line in lines:
        click.echo(f"  {line}")


@click.command()
@click.argument("address")
@click.option("--name", metavar="NAME", help="Name of the merged model; default: the adapter's name with -merged.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Round the merged weights to this type; default: as in the base. float32 keeps all of a small effect.",
)
@registry_option
@json_option
def merge(address: str, name: str | None, dtype: str | None, registry: str | None, as_json: bool) -> None:
    """Merge an adapter into its base.

    The result is registered as a whole model, but only if its logits equal those of base and adapter, up to rounding.
    If this adapter was merged before, to the same type, nothing is registered.
    """
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    done = merge_adapter(models, version, name, dtype=dtype)
    compared = done.compared
    if as_json:
        table = compared and {**asdict(compared), "allowed": compared.allowed}
        print_json({**summary(done.version), "added": compared is not None, "compared": table})
        return
    word = (
        "already registered:" if compared is None else f"merged {version.address} into its base {base_name(version)}:"
    )
    click.echo(f"{word} {click.style(done.version.address, bold=True)} (digest {done.version.digest})")
    if compared is not None:
        click.echo(
            f"largest difference of logits: {compared.difference:.1g} (up to {compared.allowed:.1g} is rounding; the "
            f"adapter changes them by up to {compared.moved:.2g})"
        )
