"""`modelwright generate` and `modelwright chat`: clients of a running server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.cli.common import json_option, print_json

if TYPE_CHECKING:
    from modelwright.grpc_server.client import Client, Generation, SamplingOptions, Stream

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--model", metavar="ADDRESS", help="NAME, NAME@3 or @ALIAS; default: the only model served."),
    click.option("--server", default="127.0.0.1:50051", show_default=True, metavar="H:P", help="Where the server is."),
    click.option("--max-tokens", type=int, help="The most tokens to generate."),
    click.option("--temperature", type=float, help="0 takes the likeliest token."),
    click.option("--top-p", type=float, help="Sample from the likeliest tokens whose probabilities reach this sum."),
    click.option("--top-k", type=int, help="Sample from this many likeliest tokens; 0 is no limit."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Ends the answer; may be given several times."),
)


def _asking(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", required=False, default="-")
@_asking
@click.option("--no-stream", is_flag=True, help="Print the answer when it is whole.")
@json_option
def generate(prompt: str, model: str | None, server: str, no_stream: bool, as_json: bool, **sampling: Any) -> None:
    """Continue PROMPT; `-` or none reads it from standard input, without the newline at its end."""
    asked: SamplingOptions = sampling  # type: ignore[assignment]
    with _client(server) as client:
        if prompt == "-":
            prompt = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        if as_json:
            print_json(_to_json(client.generate(prompt, model=model, **asked)))
        elif no_stream:
            click.echo(client.generate(prompt, model=model, **asked).text)
        else:
            with client.stream(prompt, model=model, **asked) as stream:
                _print(stream)


@click.command()
@_asking
@click.option("--message", metavar="TEXT", help="Say this, print the answer, and leave.")
@click.option("--system", metavar="TEXT", help="Instructions that stand above the conversation.")
def chat(model: str | None, server: str, message: str | None, system: str | None, **sampling: Any) -> None:
    """Talk with a model; Ctrl-D leaves, Ctrl-C stops an answer."""
    asked: SamplingOptions = sampling  # type: ignore[assignment]
    messages = [{"role": "system", "content": system}] if system else []
    with _client(server) as client:
        model = model or client.only_model().lasting_address
        if message is not None:
            with client.chat_stream([*messages, {"role": "user", "content": message}], model=model, **asked) as stream:
                _print(stream)
            return
        _converse(client, messages, model, asked)


def _converse(client: Client, messages: list[dict[str, str]], model: str, asked: SamplingOptions) -> None:
    """Ask and answer until the end of the input; a turn that fails is taken back, and the conversation goes on."""
    from modelwright.grpc_server.client import ServerError

    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() a line editor with history
        click.echo(f"Talking with {model}. Ctrl-D leaves, Ctrl-C stops an answer, /new begins a new conversation.")
    system = list(messages)
    while (said := _ask("you> " if terminal else "")) is not None:
        if not said.strip():
            continue
        if terminal and said.strip() == "/new":
            messages = list(system)
            continue
        messages.append({"role": "user", "content": said})
        try:
            with client.chat_stream(messages, model=model, **asked) as stream:
                messages.append({"role": "assistant", "content": _print(stream, stoppable=terminal)})
        except ServerError as error:
            messages.pop()
            if not terminal or error.code == "UNAVAILABLE":
                raise
            click.echo(f"error: {error}", err=True)


def _ask(prompt: str) -> str | None:
    """A line of the user; None at the end of the input."""
    try:
        return input(prompt)
    except EOFError:
        if prompt:
            click.echo()
        return None


def _print(stream: Stream, *, stoppable: bool = False) -> str:
    """Print the pieces as they come; gives the text. With `stoppable`, Ctrl-C ends the answer and no more."""
    text = ""
    try:
        for piece in stream:
            click.echo(piece, nl=False)
            text += piece
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
def _client(server: str) -> Iterator[Client]:
    """A client whose errors are one clear line."""
    from modelwright.grpc_server.client import Client, ServerError

    # However long an answer takes, there is Ctrl-C.
    with Client(server, timeout=None) as client:
        try:
            yield client
        except ServerError as error:
            hint = "; start one: modelwright serve ADDRESS" if error.code == "UNAVAILABLE" and not error.reason else ""
            raise ModelwrightError(f"{error}{hint}") from error
        except ValueError as error:
            # What the messages cannot hold: text that is not UTF-8, a number with too many digits.
            raise UsageError(f"this cannot be asked: {error}") from error
