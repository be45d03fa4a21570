"""`modelwright serve`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from modelwright.core.api.errors import MissingDependencyError
from modelwright.core.cli.common import print_table, registry_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelwright.grpc_server.server import Address
    from modelwright.grpc_server.table import ModelTable

# What needs no --server.
DEFAULT = "127.0.0.1:50051"


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--listen", default=DEFAULT, show_default=True, metavar="H:P", help="Where; port 0 takes a free one.")
@click.option("--engine", default="torch", show_default=True, help="The engine plugin that runs the models.")
@click.option("--insecure", is_flag=True, help="Allow other machines to connect: nothing is encrypted, all are let in.")
@click.option("--max-message-bytes", type=click.IntRange(1024, 2**30), default=4 * 1024 * 1024, show_default=True)
@click.option("--max-requests", type=click.IntRange(1), default=256, show_default=True, help="The most at once.")
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds for running requests at the end.",
)
@registry_option
def serve(
    addresses: tuple[str, ...],
    listen: str,
    engine: str,
    insecure: bool,
    max_message_bytes: int,
    max_requests: int,
    grace: float,
    registry: str | None,
) -> None:
    """Serve registered models over gRPC until Ctrl-C or SIGTERM.

    An ADDRESS is NAME (its newest version), NAME@3 or @ALIAS. Aliases of the registry that point to a model served here
    can be asked too, and switched without a request lost (Client.set_alias).
    """
    from modelwright.core import home
    from modelwright.core.api.components import EngineSpec
    from modelwright.core.plugins import discover
    from modelwright.core.registry import open_registry

    with _needed():
        from modelwright.grpc_server.server import Address, ServerOptions, run
    options = ServerOptions(
        listen=Address.parse(listen),
        insecure=insecure,
        max_message_bytes=max_message_bytes,
        max_requests=max_requests,
        grace=grace,
    )
    plugins = discover()
    spec = plugins.get(EngineSpec, engine)
    with _needed():
        run(open_registry(home.registry_url(registry), plugins), spec, addresses, options, _announce)


@contextlib.contextmanager
def _needed() -> Iterator[None]:
    """Say which extra a missing package belongs to."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"serving needs the package {error.name!r}, which is not installed: pip install 'modelwright[serve]'"
        ) from error


def _announce(address: Address, table: ModelTable) -> None:
    routes = table.routes()
    rows = [
        (
            model.address,
            ", ".join(f"@{route.alias}" for route in routes if route.model is model),
            model.version.digest[:12],
            str(model.context_length),
            model.spec.name,
        )
        for model in table.models()
    ]
    print_table(("model", "aliases", "digest", "context", "engine"), rows)
    click.echo(f"serving on {address}; Ctrl-C ends it. In another terminal:")
    ask = f"@{routes[0].alias}" if routes else rows[0][0]
    where = "" if str(address) == DEFAULT else f" --server {address}"
    click.echo(f"  modelwright chat --model {ask}{where}")
    click.echo(f"  modelwright generate --model {ask}{where} 'How much is 2 + 3?'")
