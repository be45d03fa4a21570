"""Ask a Modelwright server, with the plain client and with the one for asyncio.

Start a server, then this:

    modelwright serve @assistant
    python examples/client.py --model @assistant
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from modelwright import AsyncClient, Client
from modelwright.grpc_server.client import ServerError

QUESTION = "Tom has 7 apples and gets 5 more. How many apples does Tom have now?"


def ask(client: Client, model: str) -> None:
    """A whole answer, then one as it comes, then what the server has."""
    answer = client.chat(QUESTION, model=model, max_tokens=64)
    print(f"{answer.served.name}@{answer.served.version} answers: {answer.text}")
    print(f"({answer.usage.completion_tokens} tokens, ended by {answer.finish})")

    print("Piece by piece: ", end="")
    # Leaving the block early would end the request on the server.
    with client.chat_stream([{"role": "user", "content": QUESTION}], model=model, max_tokens=64) as stream:
        for piece in stream:
            print(piece, end="", flush=True)
    print()

    for served in client.models():
        print(f"{served.address} has a context of {served.context_length} tokens")


async def ask_together(client: AsyncClient, model: str, numbers: range) -> None:
    """Many questions at once: the server answers them side by side."""
    questions = [f"Ana has {number} apples and gets 1 more. How many apples does Ana have now?" for number in numbers]
    answers = await asyncio.gather(*(client.chat(question, model=model, max_tokens=64) for question in questions))
    for number, answer in zip(numbers, answers, strict=True):
        print(f"{number} + 1: {answer.text}")


async def ask_at_once(server: str, model: str) -> None:
    """The same server, from a program on asyncio."""
    async with AsyncClient(server) as client:
        await ask_together(client, model, range(1, 4))


def main() -> None:
    """Read the arguments and ask."""
    parser = argparse.ArgumentParser(description="Ask a Modelwright server.")
    parser.add_argument("--server", default="127.0.0.1:50051", help="HOST:PORT of its gRPC port")
    parser.add_argument("--model", default="@assistant", help="NAME, NAME@3 or @ALIAS")
    arguments = parser.parse_args()
    try:
        with Client(arguments.server) as client:
            ask(client, arguments.model)
        asyncio.run(ask_at_once(arguments.server, arguments.model))
    except ServerError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
