"""Reading the token that a server asks for, or that a client shows."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import click

from modelwright.core.api.errors import UsageError

_TOKEN = re.compile(rb"[\x21-\x7e]+")
# A file with a longer first line is something else.
_LONGEST = 4096


def read_token(path: Path | None, option: str) -> str | None:
    """The token in a file: its first line, without surrounding white space; None without a file.

    A file that other users can read is warned of, and read: some systems mount secrets so.

    Args:
        path: the file.
        option: of the command line, for the errors.

    Raises:
        UsageError: the file cannot be read, or its first line is not a token.
    """
    if path is None:
        return None
    from modelwright.grpc_server.client.channel import open_named

    try:
        with open_named(path, streams=True) as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline(_LONGEST + 1)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"{option} {path} cannot be read: {reason}") from error
    token = line.strip()
    if not token:
        raise UsageError(f"{option} {path} has no token: its first line is empty")
    if len(line) > _LONGEST or not _TOKEN.fullmatch(token):
        raise UsageError(
            f"{option} {path} has no valid token: expected a first line of at most {_LONGEST} printable ASCII "
            "characters without spaces"
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        click.echo(f"warning: other users of this machine can read {path}: chmod 600 {path}", err=True)
    return token.decode("ascii")
