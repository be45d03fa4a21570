"""`modelwright models export` and `modelwright models import`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from attrs import asdict

from modelwright.core.api.errors import ModelwrightError, UsageError, raise_errors
from modelwright.core.api.files import absolute
from modelwright.core.api.hf_folder import CONTEXT_KEYS
from modelwright.core.api.registry import ModelVersion, check_alias
from modelwright.core.api.wording import either
from modelwright.core.cli.common import DiskPath, json_option, print_json, registry_option
from modelwright.core.cli.models.change import move_alias
from modelwright.core.cli.models.shared import opened, summary
from modelwright.core.models.exporting import TARGETS, ExportOptions
from modelwright.core.models.exporting import export as export_to
from modelwright.core.models.finishing import DTYPES
from modelwright.core.models.gguf_base import dequantize, is_gguf
from modelwright.core.models.gguf_export import QUANTIZATIONS
from modelwright.core.models.hf_folder import BadFolderError, folder_context, folder_problems, parameter_count
from modelwright.core.models.parity import TOOLS, Parity, ParityError, Tool, find_tool, verify
from modelwright.core.models.peers import find_program
from modelwright.core.registry import naming, resolve
from modelwright.core.registry.importing import import_model

# `--verify` without a name.
_AUTO = "auto"


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
@click.option(
    "--verify",
    "tools",
    multiple=True,
    is_flag=False,
    flag_value=_AUTO,
    type=click.Choice((*TOOLS, _AUTO)),
    help="Ask this tool and the engine torch the same 20 conversations, and refuse the export if its tokens or answers "
    "differ; may be repeated. Default: transformers for a folder, llama.cpp for a GGUF, if it is installed.",
)
@click.option("--no-verify", is_flag=True, help="Export without asking another tool.")
@click.option(
    "--vllm",
    type=DiskPath(),
    envvar="MODELWRIGHT_VLLM",
    show_envvar=True,
    help="Program vllm; default: the one on PATH.",
)
@click.option(
    "--llama-server",
    type=DiskPath(),
    envvar="MODELWRIGHT_LLAMA_SERVER",
    show_envvar=True,
    help="Program llama-server; default: the one in the folder of --llama-cpp, or on PATH.",
)
@registry_option
@json_option
def export(address: str, destination: Path, registry: str | None, as_json: bool, **given: Any) -> None:
    """Export a model to a folder or an archive, or for another tool.

    DESTINATION is a new folder, or a .tar or .tar.gz file. transformers can load the folder; it also has the model
    card, and the record that `models import` reads. With --to gguf, DESTINATION is a .gguf file; with --to ollama, a
    new folder.
    """
    options = ExportOptions(dtype=given["dtype"], quantize=given["quantize"], llama_cpp=given["llama_cpp"])
    models, url = opened(registry)
    with naming(url):
        version = resolve(models, address)
    notes: list[str] = []
    verifier = _verifier(version, given, notes.append, models.folder(version))
    with _progress("exporting", sum(file.size for file in version.files)) as advance:
        export_to(
            models,
            version,
            destination,
            to=given["target"],
            options=options,
            advance=advance,
            note=notes.append,
            verify=verifier.check,
        )
    for each in notes:
        click.echo(f"note: {each}", err=True)
    if as_json:
        print_json(
            {
                **summary(version),
                "destination": str(absolute(destination)),
                "notes": notes,
                "verified": list(map(asdict, verifier.found)),
            }
        )
    else:
        for found in verifier.found:
            click.echo(f"{found}")
        click.echo(f"exported {version.address} to {destination}")


class _Verifier:
    """Verifies an export in the tools that were chosen.

    Attributes:
        found: what was found in each.
    """

    def __init__(self, address: str, tools: Sequence[tuple[Tool, str | None]], quantization: str | None) -> None:
        self.found: list[Parity] = []
        self._address = address
        self._tools = tools
        self._quantization = quantization

    def check(self, reference: Path, export: Path) -> None:
        """Verify in all of them.

        Raises:
            ParityError: one of them differs.
            ModelwrightError: this library cannot load the model.
        """
        from modelwright.core.plugins import discover

        for tool, program in self._tools:
            if sys.stderr.isatty():
                click.echo(f"verifying in {tool.name}", err=True)
            try:
                found = verify(
                    reference,
                    export,
                    tool,
                    plugins=discover(),
                    program=program,
                    quantization=self._quantization,
                )
            except ModelwrightError as error:
                raise ParityError(
                    f"{self._address} was not exported: {error}\n(--no-verify exports it nevertheless)"
                ) from error
            self.found.append(found)


def _verifier(version: ModelVersion, given: Mapping[str, Any], note: Callable[[str], None], folder: Path) -> _Verifier:
    """The tools to verify in: those that the user names, else the usual one for the kind of export, if it is there.

    Raises:
        UsageError: a tool is not there, or cannot read this kind of export.
    """
    named, gguf = list(dict.fromkeys(given["tools"])), given["target"] is not None
    if given["no_verify"]:
        if named:
            raise UsageError("--verify and --no-verify exclude each other")
        return _Verifier(version.address, (), None)
    usual = "llama.cpp" if gguf else "transformers"
    chosen = list(dict.fromkeys(usual if name == _AUTO else name for name in named or [_AUTO]))
    for name in chosen:
        if TOOLS[name].reads_gguf != gguf:
            readers = either([f"--verify {tool.name}" for tool in TOOLS.values() if tool.reads_gguf == gguf])
            raise UsageError(
                f"--verify {name} cannot read {'a GGUF file' if gguf else 'a folder in Hugging Face layout'}: choose "
                f"{readers}{'' if gguf else ', or export with --to gguf'}"
            )
    programs = {"vllm": given["vllm"], "llama.cpp": given["llama_server"] or _built_server(given["llama_cpp"])}
    try:
        tools = [find_tool(name, programs.get(name), version) for name in chosen]
    except UsageError as error:
        if named or given["llama_server"]:
            raise
        note(f"not verified: {error}")
        tools = []
    if tools and not named and (lacking := _lacking_memory(folder)):
        note(f"not verified: {lacking}; --verify {tools[0][0].name} does it nevertheless")
        tools = []
    return _Verifier(version.address, tools, given["quantize"])


def _lacking_memory(folder: Path) -> str | None:
    """Why a model cannot be loaded twice in float32; None if it can, or if nobody knows."""
    from modelwright.core.api.free_memory import machine_memory

    try:
        needed = 2 * 4 * parameter_count(folder)
    except BadFolderError:
        return None
    there = machine_memory().usable
    if needed <= there:
        return None
    return f"both sides take {needed / 1e9:.0f} GB in float32, and this machine has {there / 1e9:.0f} GB"


def _built_server(llama_cpp: Path | None) -> Path | None:
    """The server of a llama.cpp whose folder was given; None if it has only sources."""
    try:
        found = llama_cpp and find_program("llama-server", llama_cpp, "--llama-cpp")
    except UsageError:
        return None
    return Path(found) if found else None


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
