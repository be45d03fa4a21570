"""`modelwright models`: a module for each command."""

from __future__ import annotations

import builtins

import click

from modelwright.core.cli.models import alias, card, compare, delete, gc, list, merge, show, tag, transfer, verify  # noqa: A004


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> builtins.list[str]:  # noqa: ARG002 - click's signature
        """The commands."""
        return [*self.commands]


@click.group(cls=_InOrder)
def models() -> None:
    """List, compare, alias, tag, check, merge and exchange registered models."""


for command in (
    list.list_,
    show.show,
    compare.compare,
    alias.alias,
    tag.tag,
    delete.delete,
    gc.gc,
    verify.verify,
    merge.merge,
    transfer.export,
    transfer.import_,
    card.card,
):
    models.add_command(command)
