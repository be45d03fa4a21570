"""Turn the protocol's requests into the engine's. Every field is checked, and none is ignored."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Sequence
from typing import Any

import grpc

from modelwright.core.api.generation import GenerationRequest, Sampling
from modelwright.core.api.records import Message, Role
from modelwright.grpc_server.errors import RequestError, invalid, unsupported
from modelwright.grpc_server.models.loaded import LoadedModel
from modelwright.v1 import common_pb2

DEFAULT_MAX_TOKENS = 256

_ROLES: dict[int, Role] = {
    common_pb2.ROLE_SYSTEM: "system",
    common_pb2.ROLE_USER: "user",
    common_pb2.ROLE_ASSISTANT: "assistant",
}

# Every token of an answer is compared with all of them, in the one thread that serves all requests.
MOST_STOPS = 32
LONGEST_STOP = 1000


def check_adapter(request: Any) -> None:
    """Refuse a request for an adapter: this version serves none.

    Raises:
        RequestError: the request names an adapter.
    """
    if request.HasField("adapter"):
        raise unsupported("adapter", "is not supported by this version: leave it out")


async def text_prompt(model: LoadedModel, text: str, field: str) -> Sequence[int]:
    """Encode a text as tokens.

    Raises:
        RequestError: the text is empty.
    """
    if not text:
        raise invalid(field, "is empty")
    tokens = await asyncio.to_thread(model.renderer.encode, text)
    if not tokens:
        raise invalid(field, f"has no tokens in the vocabulary of {model.address}")
    return tokens


async def chat_prompt(model: LoadedModel, messages: Sequence[Any], tools: Sequence[Any]) -> Sequence[int]:
    """Encode a conversation by the model's chat template, with the start of the assistant's turn.

    Raises:
        RequestError: a turn is not valid, or needs something that this version cannot do.
        TemplateRefusedError: the template refuses the conversation.
    """
    return await asyncio.to_thread(lambda: model.renderer.prompt(read_messages(messages, tools)))


def read_messages(messages: Sequence[Any], tools: Sequence[Any] = ()) -> list[Message]:
    """Read the turns of a conversation.

    Raises:
        RequestError: a turn is not valid, or needs something that this version cannot do.
    """
    if tools:
        raise unsupported("tools", "are not supported by this version: leave them out")
    if not messages:
        raise invalid("messages", "is empty: expected at least one message")
    turns = [_turn(message, f"messages[{number}]") for number, message in enumerate(messages)]
    if turns[-1].role == "assistant":
        raise invalid(
            f"messages[{len(turns) - 1}].role", "is assistant: the last message must be one that the assistant answers"
        )
    return turns


def _turn(message: Any, field: str) -> Message:
    if message.role == common_pb2.ROLE_TOOL or message.tool_calls or message.HasField("tool_call_id"):
        raise unsupported(field, "concerns a tool, and this version does not support tools: leave it out")
    if message.HasField("name"):
        raise unsupported(f"{field}.name", "is not supported by this version: leave it out")
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid(f"{field}.role", "is not set: expected system, user or assistant")
    if message.HasField("thinking") and role != "assistant":
        raise invalid(
            f"{field}.thinking", f"is set in a message of the {role}: only the assistant's messages have thinking"
        )
    # An assistant's message may be empty; a user's may not.
    if not message.content and role != "assistant":
        raise invalid(f"{field}.content", "is empty")
    return Message(role=role, content=message.content, thinking=message.thinking or None)


def generation_request(model: LoadedModel, prompt: Sequence[int], request: Any) -> GenerationRequest:
    """Make the request for the engine.

    Args:
        model: the model that answers.
        prompt: token ids.
        request: any of the four generating requests; its `sampling` and `logprobs` are read.

    Raises:
        RequestError: a value is not valid, the engine does not support it, or the prompt fills the context.
    """
    wish = request.sampling
    _check_values(wish)
    _check_abilities(model, wish, logprobs=request.logprobs)
    return GenerationRequest(
        id=uuid.uuid4().hex,
        prompt=prompt,
        sampling=Sampling(
            max_tokens=_max_tokens(model, len(prompt), wish),
            temperature=wish.temperature,
            top_p=wish.top_p if wish.HasField("top_p") else 1.0,
            top_k=wish.top_k,
            stop=tuple(wish.stop),
            seed=wish.seed if wish.HasField("seed") else None,
        ),
        stop_token_ids=model.renderer.stop_token_ids,
        logprobs=request.logprobs,
    )


def _check_values(wish: common_pb2.Sampling) -> None:
    if wish.HasField("max_tokens") and wish.max_tokens < 1:
        raise invalid("sampling.max_tokens", f"is {wish.max_tokens}: expected 1 or more")
    if not (math.isfinite(wish.temperature) and wish.temperature >= 0):
        raise invalid("sampling.temperature", f"is {wish.temperature}: expected a finite number, 0 or more")
    if wish.HasField("top_p") and not 0 < wish.top_p <= 1:
        raise invalid("sampling.top_p", f"is {wish.top_p}: expected more than 0 and at most 1")
    if wish.top_k < 0:
        raise invalid("sampling.top_k", f"is {wish.top_k}: expected 0 (no limit) or more")
    if wish.seed < 0:
        raise invalid("sampling.seed", f"is {wish.seed}: expected 0 or more")
    if len(wish.stop) > MOST_STOPS:
        raise invalid("sampling.stop", f"has {len(wish.stop)} strings: expected at most {MOST_STOPS}")
    for number, text in enumerate(wish.stop):
        if len(text) > LONGEST_STOP:
            raise invalid(f"sampling.stop[{number}]", f"has {len(text)} characters: expected at most {LONGEST_STOP}")
        if not text:
            raise invalid(f"sampling.stop[{number}]", "is empty: expected at least one character")


def _check_abilities(model: LoadedModel, wish: common_pb2.Sampling, *, logprobs: bool) -> None:
    needed = {
        "temperature": wish.temperature > 0,
        "top_p": wish.HasField("top_p") and wish.top_p < 1,
        "top_k": wish.top_k > 0,
        "seed": wish.HasField("seed"),
        "stop": bool(wish.stop),
        "logprobs": logprobs,
    }
    for ability, wanted in needed.items():
        if wanted and ability not in model.spec.abilities:
            field = ability if ability == "logprobs" else f"sampling.{ability}"
            can = ", ".join(sorted(model.spec.abilities)) or "greedy decoding only"
            raise unsupported(
                field,
                f"is not supported by the engine {model.spec.name!r}, which runs {model.address} (it supports: {can})",
            )


def _max_tokens(model: LoadedModel, prompt_tokens: int, wish: common_pb2.Sampling) -> int:
    room = model.context_length - prompt_tokens
    wanted = wish.max_tokens if wish.HasField("max_tokens") else min(DEFAULT_MAX_TOKENS, max(room, 1))
    if wanted <= room:
        return wanted
    facts = (
        f"the prompt has {prompt_tokens} tokens, and the context of {model.address} holds {model.context_length} tokens"
    )
    if room < 1:
        message = f"{facts}, including the answer: shorten the prompt"
    else:
        message = f"sampling.max_tokens is {wanted}, but {facts}: set it to at most {room}"
    raise RequestError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "CONTEXT_EXCEEDED",
        message,
        metadata={"context_length": model.context_length, "prompt_tokens": prompt_tokens},
    )
