"""`modelwright models export` and `modelwright models import`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from modelwright.core.api.errors import ModelwrightError, UsageError, raise_errors
from modelwright.core.api.files import absolute
from modelwright.core.api.hf_folder import CONTEXT_KEYS
from modelwright.core.api.registry import check_alias
from modelwright.core.api.wording import either
from modelwright.core.cli.common import DiskPath, json_option, print_json, registry_option
from modelwright.core.cli.models.change import move_alias
from modelwright.core.cli.models.shared import opened, summary
from modelwright.core.models.exporting import TARGETS, ExportOptions
from modelwright.core.models.exporting import export as export_to
from modelwright.core.models.finishing import DTYPES
from modelwright.core.models.gguf_base import dequantize, is_gguf
from modelwright.core.models.gguf_export import QUANTIZATIONS
from modelwright.core.models.hf_folder import folder_context, folder_problems
from modelwright.core.registry import naming, resolve
from modelwright.core.registry.importing import import_model


@click.command("export")
@click.argument("address")
@click.argument("destination", type=DiskPath())
@click.option(
    "--to",
    "target",
    type=click.Choice(tuple(TARGETS)),
    help="Write for another tool: a GGUF file for llama.cpp, or a folder with GGUF and Modelfile for Ollama.",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Round the weights to this type; default: as in its base.")
@click.option("--quantize", type=click.Choice(QUANTIZATIONS), help="Quantize the weights of a GGUF.")
@click.option(
    "--llama-cpp",
    type=DiskPath(),
    help="Folder of a llama.cpp; its converter and quantizer are used. Needed for q4_k_m, and for most architectures.",
)
@registry_option
@json_option
def export(
    address: str,
    destination: Path,
    target: str | None,
    dtype: str | None,
    quantize: str | None,
    llama_cpp: Path | None,
    registry: str | None,
    as_json: bool,
) -> None:
    """Export a model to a folder or an archive, or for another tool.

    DESTINATION is a new folder, or a .tar or .tar.gz file. transformers can load the folder; it also has the model
    card, and the record that `models import` reads. With --to gguf, DESTINATION is a .gguf file; with --to ollama, a
    new folder.
    """
    options = ExportOptions(dtype=dtype, quantize=quantize, llama_cpp=llama_cpp)
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    notes: list[str] = []
    with _progress("exporting", sum(file.size for file in version.files)) as advance:
        export_to(models, version, destination, to=target, options=options, advance=advance, note=notes.append)
    for each in notes:
        click.echo(f"note: {each}", err=True)
    if as_json:
        print_json({**summary(version), "destination": str(absolute(destination)), "notes": notes})
    else:
        click.echo(f"exported {version.address} to {destination}")


@click.command("import")
@click.argument("source", type=DiskPath())
@click.option("--name", metavar="NAME", help="Name of the model; default: the name in its record.")
@click.option("--alias", metavar="ALIAS", help="Also point this alias to the model.")
@registry_option
@json_option
def import_(source: Path, name: str | None, alias: str | None, registry: str | None, as_json: bool) -> None:
    """Register a model from a folder or an archive.

    SOURCE is an exported folder or archive, or with --name any folder in Hugging Face layout with safetensors, or a
    GGUF file, which transformers dequantizes. A model that is already registered is not registered again.
    """
    if alias is not None:
        alias = check_alias(alias.removeprefix("@"))
    models, url = opened(registry)
    folder, gguf = source, None
    if is_gguf(source):
        path = absolute(source)
        made = dequantize(path, f"{source} cannot be imported")
        click.echo(f"{source}: {made}", err=True)
        folder, gguf = made.folder, (path, made.digest)
    done = import_model(models, folder, name=name, check=_check, gguf=gguf)
    version = done.version
    for each in done.left_out:
        click.echo(f"not imported: {each!r}" if not each.isprintable() else f"not imported: {each}", err=True)
    if not as_json:
        word = "imported" if done.added else "already registered:"
        click.echo(f"{word} {click.style(version.address, bold=True)} (digest {version.digest}) in {url}")
    if alias is not None:
        move_alias(models, alias, version, as_json=False, quiet=as_json)
        version = models.get(version.name, version.version)
    if as_json:
        print_json({**summary(version), "added": done.added, "left_out": list(done.left_out)})


def _check(folder: Path, source: Path) -> None:
    """Refuse a folder that could not be loaded, evaluated or served.

    Raises:
        UsageError: something is wrong; one line for each problem.
    """
    problems = list(folder_problems(folder))
    if not problems and folder_context(folder) is None:
        problems.append(f"config.json does not give the context length: expected {either(CONTEXT_KEYS)}")
    if not problems:
        problems += _renderer_problems(folder, source)
    raise_errors([UsageError(f"{source} cannot be imported: {problem}") for problem in problems])


def _renderer_problems(folder: Path, source: Path) -> list[str]:
    from modelwright.core.api.errors import MissingDependencyError
    from modelwright.core.chat.renderer import checked_renderer

    try:
        checked_renderer(folder)
    except MissingDependencyError:
        raise
    except ModelwrightError as error:
        return [str(error).replace(str(folder), str(source))]
    return []


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda size: progress.advance(task, size)
