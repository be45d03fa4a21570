"""What both endpoints that generate are asked: the model, how tokens are chosen, how many answers, in which way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from modelwright.grpc_server.gateway.errors import unsupported, wrong
from modelwright.grpc_server.gateway.fields import Fields, Harmless, anything, false, only
from modelwright.v1 import common_pb2

# Each answer takes one of the server's places.
MOST_ANSWERS = 16

# Fields of both endpoints that are a note of the caller's, or whose usual value changes nothing.
HARMLESS: Mapping[str, tuple[Harmless, str]] = {
    "frequency_penalty": (only(0), "leave it out, or say 0"),
    "presence_penalty": (only(0), "leave it out, or say 0"),
    "logit_bias": (only({}), "leave it out"),
    "metadata": (anything, ""),
    "user": (anything, ""),
}


@frozen(kw_only=True)
class Asked:
    """A request for answers, as protobuf knows it.

    Attributes:
        kind: "chat" or "text".
        model: as the request names it.
        requests: one for each answer: all answers of the first prompt, then those of the second; `model` is not set.
        prompts: how many prompts there are.
        stream: whether the answers come piece by piece.
        include_usage: whether a stream ends with what it took.
        logprobs: whether each token's log-probability is wanted.
        names: what the request called the fields that protobuf names otherwise.
    """

    kind: Literal["chat", "text"]
    model: str
    requests: tuple[Any, ...]
    prompts: int = 1
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    names: Mapping[str, str] = field(factory=dict)


def read_model(fields: Fields) -> str:
    """The address that the request names; the table says what there is where it is empty."""
    return fields.text("model") or ""


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """Whether the answers come piece by piece, and whether they end with what they took.

    Raises:
        HttpError: it cannot be read.
    """
    stream = fields.boolean("stream")
    options = fields.value("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise wrong("stream_options", 'is set without "stream": true: leave it out')
    read = Fields(options, "stream_options.")
    include_usage = read.boolean("include_usage")
    read.harmless({"include_obfuscation": (false, "leave it out")})
    read.finish()
    return True, include_usage


def read_sampling(fields: Fields, max_tokens: str) -> common_pb2.Sampling:
    """How tokens are chosen; whether the values can be is for the core to say.

    Args:
        fields: of the request.
        max_tokens: what the request calls the most tokens to generate.

    Raises:
        HttpError: a value has another type.
    """
    return common_pb2.Sampling(
        max_tokens=fields.integer(max_tokens),
        temperature=fields.number("temperature"),
        top_p=fields.number("top_p"),
        top_k=fields.integer("top_k"),
        seed=fields.seed("seed"),
        stop=fields.texts("stop"),
    )


def read_count(fields: Fields, prompts: int = 1) -> int:
    """How many answers each of `prompts` prompts gets.

    Raises:
        HttpError: there would be none, or too many.
    """
    count = fields.integer("n")
    count = 1 if count is None else count
    if count < 1:
        raise wrong("n", f"is {count}: expected 1 or more")
    if count * prompts > MOST_ANSWERS:
        asked = f"is {count}" if prompts == 1 else f"asks for {count * prompts} answers to {prompts} prompts"
        raise unsupported("n", f"{asked}: this server gives {MOST_ANSWERS} answers to a request at most")
    return count


def vary(request: Any, count: int) -> list[Any]:
    """One request an answer. The first has the seed as it is, the others have seeds that follow from it.

    Seed and place are hashed together: with seed + place, the second answer of one seed were the first of the next.
    """
    requests = []
    for place in range(count):
        varied = type(request)()
        varied.CopyFrom(request)
        if place and request.sampling.HasField("seed"):
            digest = hashlib.sha256(f"{request.sampling.seed}/{place}".encode()).digest()
            varied.sampling.seed = int.from_bytes(digest[:8], "big") >> 1
        requests.append(varied)
    return requests
