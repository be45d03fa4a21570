"""`modelwright models`: the group, with its commands in the order of its help."""

from __future__ import annotations

import click

from modelwright.core.cli.models.change import alias, delete, gc, merge, tag, verify
from modelwright.core.cli.models.show import card, compare, list_, show
from modelwright.core.cli.models.transfer import export, import_


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands."""
        return [*self.commands]


@click.group(cls=_InOrder)
def models() -> None:
    """List, compare, alias, tag, check, merge and exchange registered models."""


for command in (
    list_,
    show,
    compare,
    alias,
    tag,
    delete,
    gc,
    verify,
    merge,
    export,
    import_,
    card,
):
    models.add_command(command)
