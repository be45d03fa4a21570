"""commands.md: every command and option, as click knows them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click

from generator.text import block, code, page, table
from modelwright.core.api import errors
from modelwright.core.cli import COMMANDS, cli

_INTRODUCTION = """
`modelwright COMMAND --help` shows the same text. `python -m modelwright.core` is the same program.

A RUN.toml may be a YAML file with the same keys. An ADDRESS names a registered model: `NAME` (its newest version),
`NAME@3`, or `@ALIAS`. Paths on the command line are relative to the working directory.
"""

_ENVIRONMENT = (
    (
        "MODELWRIGHT_HOME",
        "Folder for runs, caches and the default registry; default: `.modelwright` in the working directory.",
    ),
    ("MODELWRIGHT_REGISTRY", "URL of the registry, used if neither `--registry` nor `[registry] url` is given."),
    ("MODELWRIGHT_DISABLE_PLUGINS", "Comma-separated names of plugins that are not imported."),
    ("MODELWRIGHT_STRICT_PLUGINS", "`1` raises the error of a broken plugin instead of showing it in `plugins list`."),
)


def commands() -> str:
    """The page."""
    context = click.Context(cli, info_name="modelwright")
    parts = [_command(one) for name in COMMANDS for one in _contexts(name, cli, context)]
    return page(
        "# Commands",
        _INTRODUCTION,
        "## Exit codes",
        table(("code", "meaning"), _exit_codes()),
        "## Environment",
        table(("variable", "meaning"), ((code(name), text) for name, text in _ENVIRONMENT)),
        "## Options before the command",
        _options(context),
        *parts,
    )


def _exit_codes() -> Iterator[tuple[str, str]]:
    """From the docstrings of the errors that end a command."""
    yield "`0`", "Done."
    for error in (errors.ModelwrightError, errors.UsageError, errors.StopRequested):
        first = inspect.getdoc(error) or ""
        yield code(str(error.exit_code)), first.splitlines()[0]


def _contexts(name: str, parent: click.Group, context: click.Context) -> Iterator[click.Context]:
    """A command and those below it."""
    command = parent.get_command(context, name)
    assert command is not None, name
    own = click.Context(command, info_name=name, parent=context)
    yield own
    if isinstance(command, click.Group):
        for inner in command.list_commands(own):
            yield from _contexts(inner, command, own)


def _command(context: click.Context) -> str:
    command = context.command
    level = "##" if context.parent is not None and context.parent.parent is None else "###"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    inner = ""
    if isinstance(command, click.Group):
        inner = f"Commands: {', '.join(code(one) for one in command.list_commands(context))}."
        usage = ""
    return page(
        f"{level} modelwright {context.command_path.removeprefix('modelwright ')}",
        block(usage) if usage else "",
        _help(command),
        inner,
        _options(context),
    )


def _help(command: click.Command) -> str:
    """The help text; an indented line is code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(block(inspect.cleandoc(text)) if text.startswith("  ") else text for text in paragraphs)


def _options(context: click.Context) -> str:
    rows = []
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None and isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            rows.append((code(_flags(parameter, context)), _meaning(parameter), _default(parameter)))
    return table(("option", "meaning", "default"), rows) if rows else ""


def _flags(option: click.Option, context: click.Context) -> str:
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    if option.is_flag:
        return names
    return f"{names} {_metavar(option, context)}"


def _metavar(option: click.Option, context: click.Context) -> str:
    if option.metavar is None and isinstance(option.type, click.Choice):
        return "|".join(option.type.choices)
    made = option.make_metavar(context)
    return "N" if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType) else made


def _meaning(option: click.Option) -> str:
    text = option.help or ""
    bounds = _bounds(option.type)
    says = any(words in text.lower() for words in ("repeat", "several times"))
    return f"{text} {bounds}".strip() + (" May be repeated." if option.multiple and not says else "")


def _bounds(kind: Any) -> str:
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    if low is None and high is None:
        return ""
    if high is None:
        return f"{'More than' if kind.min_open else 'At least'} {_figure(low)}."
    return (
        f"{'More than' if kind.min_open else 'From'} {_figure(low)}, at most {_figure(high)}."
        if kind.min_open
        else f"{_figure(low)} to {_figure(high)}."
    )


def _figure(value: float) -> str:
    """Whole numbers with all their digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(option: click.Option) -> str:
    value = option.default
    if option.is_flag or option.multiple or value in (None, "") or "UNSET" in repr(value):
        return ""
    return code(str(value))
