"""`modelwright cache list | prune`: the cache of prepared data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from modelwright.core.cli.common import FiniteRange, json_option, print_json, print_table, size_text

if TYPE_CHECKING:
    from modelwright.core.stages.prepare.cache import Cache

DAY = 86_400


@click.group()
def cache() -> None:
    """Manage the cache of prepared data in $MODELWRIGHT_HOME/cache.

    It holds shards of examples and tokens, and whole prepared data sets, so that a later run with the same data and
    options reuses them. Removing any of it is safe: it is made again when needed, and runs keep their own files.
    """


@cache.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Show how much is cached and when it was last used."""
    from modelwright.core.stages.prepare.cache import freed, total

    cache = _cache()
    entries = list(cache.entries())
    if as_json:
        kept = [
            {"kind": entry.kind, "key": entry.path.name, "size": total([entry]), "used": _time(entry.used)}
            for entry in entries
        ]
        print_json({"folder": str(cache.root), "size": total(entries), "entries": kept})
        return
    click.echo(f"{cache.root}: {size_text(total(entries))}, {size_text(freed(entries))} of it not used by any run")
    kinds = sorted({entry.kind for entry in entries})
    of = {kind: [entry for entry in entries if entry.kind == kind] for kind in kinds}
    rows = [
        (kind, f"{len(of[kind]):,}", size_text(total(of[kind])), _time(max(entry.used for entry in of[kind])))
        for kind in kinds
    ]
    if rows:
        print_table(("kind", "entries", "size", "last used"), rows)


@cache.command()
@click.option(
    "--older-than",
    "days",
    type=FiniteRange(min=0),
    metavar="DAYS",
    default=30,
    show_default=True,
    help="Remove entries that were not used for this many days; 0 removes all.",
)
@click.option("--dry-run", is_flag=True, help="Only report what would be removed.")
@json_option
def prune(days: float, dry_run: bool, as_json: bool) -> None:
    """Remove cache entries that were not used for a while.

    Fails while a run is preparing its data.
    """
    from modelwright.core.stages.prepare.cache import freed

    cache = _cache()
    with cache.locked(alone=True):
        old = [entry for entry in cache.entries() if entry.used <= time.time() - days * DAY]
        size = freed(old)
        if not dry_run:
            for entry in old:
                cache.remove(entry)
    if as_json:
        print_json({"entries": len(old), "size": size, "dry_run": dry_run})
        return
    what = "1 entry" if len(old) == 1 else f"{len(old):,} entries"
    word = "would be removed from" if dry_run else "removed from"
    click.echo(f"{what} {word} {cache.root}, {size_text(size)} freed")


def _cache() -> Cache:
    from modelwright.core import home
    from modelwright.core.stages.prepare.cache import Cache

    return Cache(home.cache())


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
