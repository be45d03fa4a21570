"""What both clients send: the messages of the protocol, made from plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message

from modelwright.v1 import common_pb2, inference_pb2

Request = TypeVar("Request", bound=Message)
Messages = str | Iterable[Mapping[str, str]]


class SamplingOptions(TypedDict, total=False):
    """How the next tokens are chosen; what is left out takes the server's default.

    Attributes:
        max_tokens: the most tokens to generate.
        temperature: 0 takes the likeliest token.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum.
        top_k: sample from this many likeliest tokens; 0 is no limit.
        seed: makes sampling repeatable.
        stop: a text, or several, that end the answer.
        logprobs: whether the answer carries each token's log-probability.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str]
    logprobs: bool


def text_request(kind: type[Request], model: str, prompt: str, sampling: SamplingOptions) -> Request:
    """A GenerateRequest or GenerateStreamRequest.

    Raises:
        ValueError: a message cannot hold a value.
    """
    return _made(kind, model=model, prompt=prompt, **_asked(sampling))


def chat_request(kind: type[Request], model: str, messages: Messages, sampling: SamplingOptions) -> Request:
    """A ChatRequest or ChatStreamRequest.

    Raises:
        ValueError: a message cannot hold a value, or a turn is none.
    """
    return _made(kind, model=model, messages=_messages(messages), **_asked(sampling))


def tokenize_request(model: str, text: Messages) -> inference_pb2.TokenizeRequest:
    """A TokenizeRequest, for a text or for messages.

    Raises:
        ValueError: a message cannot hold a value, or a turn is none.
    """
    if isinstance(text, str):
        return inference_pb2.TokenizeRequest(model=model, text=text)
    conversation = common_pb2.Conversation(messages=_messages(text))
    return inference_pb2.TokenizeRequest(model=model, conversation=conversation)


def _made(kind: type[Request], **fields: Any) -> Request:
    return kind(**fields)


def _asked(sampling: SamplingOptions) -> dict[str, Any]:
    values: dict[str, Any] = {key: value for key, value in sampling.items() if value is not None}
    logprobs = values.pop("logprobs", None)
    stop = values.pop("stop", ())
    message = common_pb2.Sampling(stop=[stop] if isinstance(stop, str) else stop, **values)
    return {"sampling": message, "logprobs": logprobs}


def _messages(messages: Messages) -> list[common_pb2.Message]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return [_message(message) for message in messages]


def _message(message: Mapping[str, str]) -> common_pb2.Message:
    fields = dict(message)
    role = fields.pop("role", "")
    try:
        return common_pb2.Message(role=common_pb2.Role.Value(f"ROLE_{role.upper()}"), **fields)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{message!r} is no message: {error}") from error
