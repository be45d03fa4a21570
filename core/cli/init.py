"""`modelwright init`: a folder to begin with."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import click

from modelwright.core.cli.common import DiskPath

FORMATS = ("math", "reasoning", "general")
RUN = "run.toml"


@click.command()
@click.argument("folder", type=DiskPath(), default=Path())
@click.option(
    "--format", "format_name", type=click.Choice(FORMATS), default="math", show_default=True, help="Of the data."
)
def init(folder: Path, format_name: str) -> None:
    """Write a commented run.toml and a sample of data into FOLDER (default: here).

    It works as it is: `modelwright run FOLDER/run.toml` trains a small model on the sample in a minute. Nothing that is
    there is overwritten.
    """
    from modelwright.core.api.errors import UsageError
    from modelwright.core.api.files import why_no_folder

    contents = _contents(format_name)
    if why := why_no_folder(folder):
        raise UsageError(f"{folder} {why}: name a folder, which need not be there yet")
    there = [str(folder / name) for name in contents if _is_there(folder / name)]
    # A file of that name stands where a folder is to be.
    there += [str(folder / "data")] if _is_there(folder / "data") and not (folder / "data").is_dir() else []
    if there:
        verb = "is" if len(there) == 1 else "are"
        raise UsageError(f"{', '.join(there)} {verb} there already and would be overwritten: name another folder")
    _write(folder, contents)
    for name in contents:
        click.echo(f"wrote {folder / name}")
    run = shlex.quote(str(folder / RUN))
    click.echo("\nNext:")
    click.echo(f"  modelwright run {run}      (a minute on a laptop)")
    click.echo("  modelwright serve first-model")
    click.echo("  modelwright chat --model first-model      (in another terminal)")
    click.echo(f"\nThen put your own rows into {folder / 'data'} and read {folder / RUN}: every key says what it does.")


def _is_there(path: Path) -> bool:
    """Whether the name is taken, be it by a link to nowhere."""
    return os.path.lexists(path)


def _contents(format_name: str) -> Mapping[str, str]:
    """The text of each file; run.toml last, so that where it is, all is."""
    from modelwright.core.api.files import json_line
    from modelwright.core.cli.samples import SAMPLES, SIZES, TEST, TRAIN, run_text

    rows = SAMPLES[format_name].rows
    data = {
        name: "".join(map(json_line, itertools.islice(rows(split), SIZES[split])))
        for name, split in ((TRAIN, "train"), (TEST, "test"))
    }
    return {**data, RUN: run_text(format_name)}


def _write(folder: Path, contents: Mapping[str, str]) -> None:
    """Write all of it or nothing.

    Raises:
        ModelwrightError: the folder cannot be written to.
    """
    from modelwright.core.api.files import failing_as, writing_folder

    with failing_as(f"{folder} cannot be written to"):
        if folder.exists():
            _write_into(folder, contents)
            return
        with writing_folder(folder) as staged:
            _write_into(staged, contents)


def _write_into(folder: Path, contents: Mapping[str, str]) -> None:
    """Write the files; where one cannot be written, those before it go again, with the folders made for them."""
    from modelwright.core.api.files import write_text

    with contextlib.ExitStack() as undo:
        for name, text in contents.items():
            path = folder / name
            if not path.parent.exists():
                path.parent.mkdir()
                undo.callback(path.parent.rmdir)
            undo.callback(path.unlink, missing_ok=True)
            write_text(path, text)
        undo.pop_all()
