"""The command line: one module a command, imported when that command runs, so that `--help` stays quick."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

import click


class OutputError(Exception):
    """Standard output cannot be written. Not an OSError, because code that handles those means another file."""


class ReaderLeft(OutputError):  # noqa: N818 - not an error: the reader has enough (`modelwright models list | head`)
    """The reader of standard output has gone."""


class _Output:
    """A stream whose failures are an `OutputError`; in all else it is that stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> _Output:
        """The stream's bytes: click writes to them where the encoding is ASCII."""
        return _Output(self._stream.buffer)

    def write(self, data: Any) -> Any:
        """As the stream."""
        with _failing():
            return self._stream.write(data)

    def writelines(self, lines: Any) -> None:
        """As the stream."""
        with _failing():
            self._stream.writelines(lines)

    def flush(self) -> None:
        """As the stream."""
        with _failing():
            self._stream.flush()


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderLeft from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write standard output: {reason}: redirect it to another disk") from error
    except UnicodeEncodeError as error:
        letter = ascii(error.object[error.start])
        raise OutputError(
            f"cannot write standard output: its encoding {error.encoding} has no {letter}: set PYTHONIOENCODING=utf-8"
        ) from error


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Make `sys.stdout` fail with an `OutputError` while the block runs and when its output is flushed at the end.

    Raises:
        OutputError: it failed, and is closed: its unwritten content would fail again when Python ends.
    """
    stream: TextIO | None = sys.stdout
    if stream is None:  # closed by the program that started this one
        yield
        return
    guarded = sys.stdout = cast("TextIO", _Output(stream))
    try:
        yield
        guarded.flush()
    except OutputError:
        with contextlib.suppress(OSError):
            stream.close()
        raise
    finally:
        sys.stdout = stream


# Command → (module:attribute, the line that --help shows). The line is here so that help imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init:init", "Write a commented run.toml and sample data to start from."),
    "run": ("run:run", "Run all stages of a run.toml; finished stages are skipped."),
    "prepare": ("prepare:prepare", "Prepare training tokens from raw rows."),
    "train": ("run:train", "Train the model, or resume its training."),
    "register": ("run:register", "Register the trained model."),
    "evaluate": ("evaluate:evaluate", "Evaluate registered models on test sets."),
    "promote": ("run:promote", "Point the alias to the new model if its condition holds."),
    "submit": ("jobs:submit", "Submit a run.toml to Slurm as a chain of jobs."),
    "jobs": ("jobs:jobs", "Show or cancel the Slurm jobs of a run, or print their logs."),
    "models": ("models:models", "List, compare, alias, tag, verify, export and import models."),
    "serve": ("serve:serve", "Serve registered models over gRPC."),
    "generate": ("generate:generate", "Generate text with a model of a running server."),
    "chat": ("generate:chat", "Chat with a model of a running server."),
    "data": ("data:data", "Inspect the prepared data of a run."),
    "cache": ("cache:cache", "List or remove cached results of data preparation."),
    "plugins": ("plugins:plugins", "List installed plugins."),
    "config": ("config:config", "Check or show the configuration in a run.toml."),
    "doctor": ("doctor:doctor", "Report what this machine has and what a run.toml lacks on it."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands in the order of a run, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"modelwright.core.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, with a suggestion for a misspelt name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from modelwright.core.api.wording import closest

            close = closest(args[0], COMMANDS)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands with their lines, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="modelwright", message="modelwright %(version)s")
@click.option("--traceback", is_flag=True, help="Show the Python traceback of an error.")
def cli(traceback: bool) -> None:
    """Train, evaluate, register and serve language models from raw math, reasoning and general data."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 wrong usage, 75 stopped and resumable."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with guarded_output():
            result: Any = cli.main(arguments, prog_name="modelwright", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(75)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ReaderLeft:
        sys.exit(0)  # there is no reader left
    except OutputError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        # Imported here, because `--help` does not need it.
        from modelwright.core.api.errors import ModelwrightError

        if "--traceback" in arguments or not isinstance(error, ModelwrightError | OSError):
            raise
        with contextlib.suppress(OSError):  # the terminal may be gone; the exit code is not
            for line in error.lines if isinstance(error, ModelwrightError) else (f"error: {error}",):
                click.echo(line, err=True)
        sys.exit(error.exit_code if isinstance(error, ModelwrightError) else 1)
    sys.exit(result if isinstance(result, int) else 0)
