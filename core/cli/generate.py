"""`modelwright generate` and `modelwright chat`: clients of a running server, and the standard input that they read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.cli.auth_tokens import read_token
from modelwright.core.cli.common import FiniteRange, Text, json_option, print_json

if TYPE_CHECKING:
    from modelwright.grpc_server.client import Client, Generation, SamplingOptions, Stream

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
# What the protocol's numbers hold: int32 and int64.
_COUNTS, _SEEDS = 2**31 - 1, 2**63 - 1
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--model",
        type=Text(),
        metavar="ADDRESS",
        help="NAME, NAME@3 or @ALIAS; needed if the server has several models.",
    ),
    click.option(
        "--server", default="127.0.0.1:50051", show_default=True, metavar="H:P", help="Address of the server."
    ),
    click.option("--token-file", type=_FILE, metavar="FILE", help="File whose first line is the server's token."),
    click.option("--tls", is_flag=True, help="Use TLS, and trust the system's certificate authorities."),
    click.option(
        "--tls-ca",
        type=_FILE,
        metavar="FILE",
        help="Use TLS, and trust the certificate authorities in this file instead (PEM).",
    ),
    click.option("--insecure", is_flag=True, help="Allow sending the token unencrypted to another machine."),
    click.option(
        "--max-tokens", type=click.IntRange(1, _COUNTS), metavar="N", help="Maximum number of tokens to generate."
    ),
    click.option(
        "--temperature",
        type=FiniteRange(0),
        metavar="T",
        help="Sampling temperature; 0 always picks the likeliest token.",
    ),
    click.option(
        "--top-p",
        type=FiniteRange(0, 1, min_open=True),
        metavar="P",
        help="Sample from the smallest set of likeliest tokens whose probabilities add up to this.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, _COUNTS),
        metavar="K",
        help="Sample from this number of likeliest tokens; 0 means no limit.",
    ),
    click.option("--seed", type=click.IntRange(0, _SEEDS), metavar="N", help="Seed, to make sampling repeatable."),
    click.option(
        "--stop",
        type=Text(empty=False),
        multiple=True,
        metavar="TEXT",
        help="Stop the answer before this text. Repeatable.",
    ),
)


# Those of the options that say how to connect.
_CONNECTION = ("server", "token_file", "tls", "tls_ca", "insecure")
# What the client's arguments are called here.
_FLAGS = {"target": "--server", "token": "--token-file", "tls": "--tls", "tls_ca": "--tls-ca", "insecure": "--insecure"}


def _client_options(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", type=Text(), required=False, default="-")
@_client_options
@click.option("--no-stream", is_flag=True, help="Print the answer once it is complete.")
@json_option
def generate(prompt: str, model: str | None, no_stream: bool, as_json: bool, **options: Any) -> None:
    """Continue PROMPT. Without PROMPT, or with `-`, read it from standard input; its final newline is dropped."""
    if prompt == "-":
        check_input("PROMPT")
    with _client(options) as (client, sampling):
        if prompt == "-":
            prompt = read_text().removesuffix("\n")
        if as_json:
            print_json(_to_json(client.generate(prompt, model=model, **sampling)))
        elif no_stream:
            click.echo(client.generate(prompt, model=model, **sampling).text)
        else:
            with client.stream(prompt, model=model, **sampling) as stream:
                for piece in stream:
                    click.echo(piece, nl=False)
                click.echo()


@click.command()
@_client_options
@click.option("--message", type=Text(), metavar="TEXT", help="Send this message, print the answer, and exit.")
@click.option("--system", type=Text(), metavar="TEXT", help="System message: instructions for the whole conversation.")
@click.option(
    "--show-thinking/--hide-thinking",
    "thinking",
    default=None,
    help="Print the thinking before the answer; default: only on a terminal.",
)
def chat(model: str | None, message: str | None, system: str | None, thinking: bool | None, **options: Any) -> int:
    """Chat with a model. Ctrl-C stops an answer, Ctrl-D exits."""
    if message is None:
        check_input("--message TEXT")
    messages = [{"role": "system", "content": system}] if system else []
    shown = sys.stdout.isatty() if thinking is None else thinking
    with _client(options) as (client, sampling):
        # Before anyone types: there may be no such model.
        model = model or client.only_model().lasting_address
        client.get_model(model)
        if message is not None:
            with client.chat_stream(
                [*messages, {"role": "user", "content": message}], model=model, **sampling
            ) as stream:
                _print(stream, thinking=shown)
            return 0
        return _converse(client, messages, model, sampling, thinking=shown)


def _converse(
    client: Client, messages: list[dict[str, str]], model: str, sampling: SamplingOptions, *, thinking: bool
) -> int:
    """Ask and answer until the end of the input; a turn that fails is taken back, and the conversation goes on.

    Gives the exit code: 1 where a piped line could not be sent.
    """
    from modelwright.grpc_server.client import ServerError

    terminal = sys.stdin.isatty()
    code = 0
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() a line editor with history
        click.echo(f"Chatting with {model}. Ctrl-C stops an answer, /new starts a new conversation, Ctrl-D exits.")
    system = list(messages)
    while True:
        try:
            said = read_line("you> ")
        except NotUtf8Error as error:
            click.echo(f"error: {error}; it is left out of the conversation", err=True)
            code = 0 if terminal else 1
            continue
        if said is None:
            return code
        if not said.strip():
            continue
        if terminal and said.strip() == "/new":
            messages = list(system)
            continue
        messages.append({"role": "user", "content": said})
        try:
            with client.chat_stream(messages, model=model, **sampling) as stream:
                answer = _print(stream, thinking=thinking, stoppable=terminal)
            messages.append({"role": "assistant", "content": answer})
        except ServerError as error:
            messages.pop()
            if not terminal or error.code == "UNAVAILABLE":
                raise
            click.echo(f"error: {error}", err=True)


def _print(stream: Stream, *, thinking: bool, stoppable: bool = False) -> str:
    """Print the answer as it comes; gives its text. With `stoppable`, Ctrl-C ends the answer and no more."""
    text = ""
    thought = False
    try:
        for part in stream.parts():
            if part.thinking and thinking:
                click.secho(part.thinking, dim=True, nl=False)
                thought = True
            if part.text and thought:
                click.echo("\n")
                thought = False
            click.echo(part.text, nl=False)
            text += part.text
    except KeyboardInterrupt:
        if not stoppable:
            raise
        stream.close()
    click.echo()
    return text


def _to_json(answer: Generation) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "text": answer.text,
        "finish": answer.finish,
        "usage": asdict(answer.usage),
        "served": asdict(answer.served),
    }


@contextlib.contextmanager
def _client(options: dict[str, Any]) -> Iterator[tuple[Client, SamplingOptions]]:
    """A client whose errors are one clear line, and how it is to sample."""
    # What gRPC would log of a connection that fails is in the one line that says so.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from modelwright.grpc_server.client import Client, ServerError
    from modelwright.grpc_server.client.errors import ArgumentError

    connection = {name: options.pop(name) for name in _CONNECTION}
    target = connection.pop("server")
    connection["token"] = read_token(connection.pop("token_file"), "--token-file")
    sampling: SamplingOptions = options  # type: ignore[assignment]
    try:
        # However long an answer takes, there is Ctrl-C.
        client = Client(target, timeout=None, **connection)
    except ArgumentError as error:
        raise UsageError(error.message_for(_FLAGS)) from error
    except OSError as error:
        raise UsageError(f"--tls-ca {error.filename} cannot be read: {(error.strerror or '').lower()}") from error
    try:
        with client:
            yield client, sampling
    except ServerError as error:
        nobody = str(error).startswith("no server answers")
        raise ModelwrightError(
            f"{error}; start a server: modelwright serve ADDRESS" if nobody else str(error)
        ) from error


class NotUtf8Error(UsageError):
    """What was typed or piped in is not UTF-8."""


def check_input(instead: str) -> None:
    """Look whether there is a standard input.

    Args:
        instead: what could be given in its place, for the error.

    Raises:
        UsageError: it was closed when this program was started.
    """
    if sys.stdin is None:
        raise UsageError(f"standard input is closed: pass {instead}, or open it")


def read_text() -> str:
    """All of standard input.

    Raises:
        NotUtf8Error: it is not UTF-8.
        ModelwrightError: it cannot be read.
    """
    with _reading():
        return _decode(sys.stdin.buffer.read(), "standard input")


def read_line(prompt: str) -> str | None:
    """A line, prompted with `prompt` on a terminal; None at the end of the input.

    Raises:
        NotUtf8Error: it is not UTF-8; the next line may be.
        ModelwrightError: standard input cannot be read.
    """
    with _reading():
        return _typed(prompt) if sys.stdin.isatty() else _piped()


def _typed(prompt: str) -> str | None:
    try:
        # A terminal's encoding is the locale's; what that has no letter for comes as a surrogate, or not at all.
        return _decode(input(prompt).encode("utf-8", "surrogateescape"), "this line")
    except UnicodeError as error:
        raise NotUtf8Error("this line is not in the terminal's encoding") from error
    except EOFError:
        click.echo()
        return None


def _piped() -> str | None:
    line = sys.stdin.buffer.readline()
    return _decode(line, "this line").removesuffix("\n").removesuffix("\r") if line else None


def _decode(content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"{what} is not UTF-8 (byte {error.start + 1}): expected text in UTF-8") from error


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelwrightError(f"standard input cannot be read: {reason}") from error
