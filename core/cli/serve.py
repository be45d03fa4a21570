"""`modelwright serve`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelwright.core.api.errors import MissingDependencyError, UsageError
from modelwright.core.cli.auth_tokens import read_token
from modelwright.core.cli.common import FiniteRange, print_table, registry_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelwright.grpc_server.models.switching import ModelTable
    from modelwright.grpc_server.server import Addresses, Announce, ServerOptions

# The address that clients use without --server.
DEFAULT = "127.0.0.1:50051"

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option(
    "--listen",
    default=DEFAULT,
    show_default=True,
    metavar="H:P",
    help="Address of the gRPC API; port 0 picks a free port.",
)
@click.option("--http", metavar="H:P", help="Also serve the OpenAI-compatible HTTP API here.")
@click.option("--admin", metavar="H:P", help="Separate address for admin calls: those that change what is served.")
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate chain of the server (PEM); turns TLS on.")
@click.option(
    "--tls-key", type=_FILE, metavar="FILE", help="Private key of the certificate (PEM, without a passphrase)."
)
@click.option(
    "--token-file", type=_FILE, metavar="FILE", help="File whose first line is the token that every caller must send."
)
@click.option(
    "--admin-token-file",
    type=_FILE,
    metavar="FILE",
    help="File whose first line is the token for admin calls; default: --token-file.",
)
@click.option(
    "--insecure", is_flag=True, help="Allow unencrypted connections from other machines, on a trusted network."
)
@click.option(
    "--engine", default="torch", show_default=True, metavar="NAME", help="Engine plugin that runs the models."
)
@click.option(
    "--max-message-bytes",
    type=click.IntRange(1024, 2**30),
    metavar="N",
    default=4 * 1024 * 1024,
    show_default=True,
    help="Maximum size of a request, in bytes.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    metavar="N",
    default=256,
    show_default=True,
    help="Maximum number of concurrent requests; further ones are refused.",
)
@click.option(
    "--grace",
    type=FiniteRange(0),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="Seconds that running requests may take to finish when the server stops.",
)
@registry_option
def serve(addresses: tuple[str, ...], engine: str, registry: str | None, **settings: Any) -> None:
    """Serve registered models over gRPC until Ctrl-C or SIGTERM.

    An ADDRESS is NAME (its newest version), NAME@3 or @ALIAS. Every alias in the registry that points to one of these
    models is served as well. Client.set_alias switches an alias to another model without losing a request.

    Without --admin, the gRPC address accepts admin calls, but only if it is a loopback address. An address that other
    machines can reach needs --tls-cert and --tls-key, or --insecure.
    """
    from modelwright.core import home
    from modelwright.core.api.components import EngineSpec
    from modelwright.core.plugins import discover
    from modelwright.core.registry import open_registry

    # Malformed connections are not worth a log line.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    with _needed():
        from modelwright.grpc_server.server import run

        options = _options(**settings)
    plugins = discover()
    spec = plugins.get(EngineSpec, engine)
    with _needed():
        run(
            open_registry(home.registry_url(registry), plugins),
            spec,
            addresses,
            options,
            _announcer(options),
            engines=lambda name: plugins.get(EngineSpec, name),
        )


def _options(
    *,
    listen: str,
    http: str | None,
    admin: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    token_file: Path | None,
    admin_token_file: Path | None,
    **numbers: Any,
) -> ServerOptions:
    from modelwright.grpc_server.network.listening import Address
    from modelwright.grpc_server.network.tls import Tls
    from modelwright.grpc_server.server import ServerOptions

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together: set both or neither")
    return ServerOptions(
        listen=Address.parse(listen),
        http=Address.parse(http) if http is not None else None,
        admin=Address.parse(admin) if admin is not None else None,
        tls=Tls(certificate=tls_cert, key=tls_key) if tls_cert is not None and tls_key is not None else None,
        token=read_token(token_file, "--token-file"),
        admin_token=read_token(admin_token_file, "--admin-token-file"),
        **numbers,
    )


@contextlib.contextmanager
def _needed() -> Iterator[None]:
    """Say which extra a missing package belongs to."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"serving needs the package {error.name!r}: pip install 'modelwright[serve]'"
        ) from error


def _announcer(options: ServerOptions) -> Announce:
    def announce(bound: Addresses, table: ModelTable) -> None:
        _print_models(table)
        if bound.admin is not None:
            click.echo(f"admin calls: {bound.admin}")
        if bound.http is not None:
            scheme = "http" if options.tls is None else "https"
            click.echo(f"HTTP: {scheme}://{bound.http}/v1")
        click.echo(f"serving on {bound.listen}; press Ctrl-C to stop. In another terminal:")
        flags = [] if str(bound.listen) == DEFAULT else [f"--server {bound.listen}"]
        flags += ["--tls-ca FILE"] if options.tls is not None else []
        flags += ["--token-file FILE"] if options.token is not None else []
        where = "".join(f" {flag}" for flag in flags)
        routes = table.routes()
        ask = f"@{routes[0].alias}" if routes else table.models()[0].address
        click.echo(f"  modelwright chat --model {ask}{where}")
        click.echo(f"  modelwright generate --model {ask}{where} 'How much is 2 + 3?'")

    return announce


def _print_models(table: ModelTable) -> None:
    rows = [
        (
            model.address,
            ", ".join(f"@{route.alias}" for route in table.routes() if route.model is model),
            model.version.digest[:12],
            str(model.context_length),
            model.spec.name,
        )
        for model in table.models()
    ]
    print_table(("model", "aliases", "digest", "context", "engine"), rows)
