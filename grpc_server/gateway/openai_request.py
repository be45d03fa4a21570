"""Read OpenAI's requests, /v1/chat/completions and /v1/completions, into the protocol's messages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from modelwright.grpc_server.gateway.body import Fields, Harmless, anything, false, kind_of, only, switch
from modelwright.grpc_server.gateway.errors import unsupported, wrong
from modelwright.v1 import common_pb2, inference_pb2

# Each answer counts as one of the server's concurrent requests.
MOST_ANSWERS = 16

# Fields of both endpoints that are notes of the caller's, or whose usual values change nothing.
_HARMLESS: Mapping[str, tuple[Harmless, str]] = {
    "frequency_penalty": (only(0), "leave it out, or set it to 0"),
    "presence_penalty": (only(0), "leave it out, or set it to 0"),
    "logit_bias": (only({}), "leave it out"),
    "metadata": (anything, ""),
    "user": (anything, ""),
}


@frozen(kw_only=True)
class OpenAIRequest:
    """A request for answers, as messages of the protocol.

    Attributes:
        kind: "chat" or "text".
        model: the address in the request.
        requests: one for each answer: all answers to the first prompt, then those to the second; `model` is not set.
        prompts: number of prompts.
        stream: whether the answers are streamed.
        include_usage: whether a stream ends with its usage.
        logprobs: whether to return each token's log-probability.
        names: the request's names of fields that have other names in the protocol.
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
    """Read the model's address. If it is empty, the table answers with the choices."""
    return fields.text("model") or ""


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """Read whether the answers are streamed, and whether the stream ends with its usage.

    Raises:
        HttpError: a value is not valid.
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
    """Read the sampling settings. `admit` checks their values.

    Args:
        fields: of the request.
        max_tokens: the request's name of the maximum number of tokens.

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
    """Read the number of answers to each of `prompts` prompts.

    Raises:
        HttpError: there would be none, or too many.
    """
    count = fields.integer("n")
    count = 1 if count is None else count
    if count < 1:
        raise wrong("n", f"is {count}: expected 1 or more")
    if count * prompts > MOST_ANSWERS:
        wanted = f"is {count}" if prompts == 1 else f"asks for {count * prompts} answers to {prompts} prompts"
        raise unsupported("n", f"{wanted}: expected at most {MOST_ANSWERS} answers per request")
    return count


def vary(request: Any, count: int) -> list[Any]:
    """Make one request for each answer. The first has the seed itself, the others have seeds derived from it.

    Seed and index are hashed together: with seed + index, the second answer of a seed would be the first of the next.
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


_NO_TOOLS = "this server has no tools, leave it out"

# In addition to the common ones.
CHAT_HARMLESS: Mapping[str, tuple[Harmless, str]] = {
    **_HARMLESS,
    "audio": (only(), "leave it out"),
    "chat_template_kwargs": (only({}), "the model's template is used as it is, leave it out"),
    "function_call": (only("none", "auto"), _NO_TOOLS),
    "functions": (only([]), _NO_TOOLS),
    "modalities": (only(["text"]), 'leave it out, or set it to ["text"]'),
    "parallel_tool_calls": (switch, _NO_TOOLS),
    "prediction": (only(), "leave it out"),
    "prompt_cache_key": (anything, ""),
    "prompt_cache_retention": (anything, ""),
    "reasoning_effort": (only(), "leave it out"),
    "response_format": (only({"type": "text"}), 'leave it out, or set it to {"type": "text"}'),
    "safety_identifier": (anything, ""),
    "service_tier": (only("auto", "default"), "leave it out"),
    "store": (false, "answers are not stored, leave it out"),
    "tool_choice": (only("none", "auto"), _NO_TOOLS),
    "tools": (only([]), _NO_TOOLS),
    "top_logprobs": (only(0), "only the chosen token has a log-probability, leave it out"),
    "verbosity": (only("medium"), "leave it out"),
    "web_search_options": (only(), "leave it out"),
}

# Fields that return when a client sends an answer, of this server or another, as a turn of the assistant.
_HARMLESS_IN_ASSISTANT: Mapping[str, tuple[Harmless, str]] = {
    "annotations": (only([]), "leave it out"),
    "audio": (only(), "leave it out"),
    "function_call": (only(), _NO_TOOLS),
    "refusal": (only(), "put the text into content"),
    "tool_calls": (only([]), _NO_TOOLS),
}

_ROLES = {
    "system": common_pb2.ROLE_SYSTEM,
    "developer": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}


def read_chat(body: Mapping[str, Any]) -> OpenAIRequest:
    """Read the body of a request.

    Raises:
        HttpError: it is not valid, or requests something unsupported.
    """
    fields = Fields(body)
    model = read_model(fields)
    max_tokens = _max_tokens_name(fields)
    logprobs = fields.boolean("logprobs")
    request = inference_pb2.ChatRequest(
        messages=_messages(fields.value("messages")),
        sampling=read_sampling(fields, max_tokens),
        logprobs=logprobs,
    )
    count = read_count(fields)
    stream, include_usage = read_stream(fields)
    fields.harmless(CHAT_HARMLESS)
    fields.finish()
    requests = tuple(vary(request, count))
    return OpenAIRequest(
        kind="chat",
        model=model,
        requests=requests,
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs,
        names={"max_tokens": max_tokens},
    )


def _max_tokens_name(fields: Fields) -> str:
    """OpenAI renamed the field. Both names are in use, and only one of them may be given."""
    old, new = "max_tokens", "max_completion_tokens"
    if fields.has(new) and fields.has(old):
        raise wrong(new, f"and {old} are both set: they mean the same, leave {old} out")
    name, other = (old, new) if fields.has(old) else (new, old)
    fields.value(other)
    return name


def _messages(values: Any) -> list[common_pb2.Message]:
    if values is None:
        raise wrong("messages", 'is missing: expected [{"role": "user", "content": "…"}]')
    if not isinstance(values, list):
        raise wrong("messages", f"is {kind_of(values)}: expected an array")
    return [_message(value, f"messages[{number}]") for number, value in enumerate(values)]


def _message(value: Any, where: str) -> common_pb2.Message:
    fields = Fields(value, f"{where}.")
    role = fields.required_text("role", "expected system, developer, user or assistant")
    if role in ("tool", "function"):
        raise unsupported(f"{where}.role", f"is {role}, and this server does not support tools: leave the message out")
    if role not in _ROLES:
        raise wrong(f"{where}.role", f"is {role[:60]!r}: expected system, developer, user or assistant")
    content = _content(fields.value("content"), f"{where}.content", needed=role != "assistant")
    thinking = None
    if role == "assistant":
        thinking = fields.text("reasoning_content")
        fields.harmless(_HARMLESS_IN_ASSISTANT)
    name = fields.text("name")
    fields.finish()
    return common_pb2.Message(role=_ROLES[role], content=content, thinking=thinking or None, name=name)


def _content(value: Any, where: str, *, needed: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        if needed:
            raise wrong(where, "is missing: expected a string")
        return ""
    if not isinstance(value, list):
        raise wrong(where, f"is {kind_of(value)}: expected a string or an array of text parts")
    return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))


def _part(value: Any, where: str) -> str:
    fields = Fields(value, f"{where}.")
    kind = fields.required_text("type", 'expected "text"')
    if kind != "text":
        raise unsupported(f"{where}.type", f"is {kind[:60]!r}: only text is supported, leave the part out")
    text = fields.required_text("text", "expected a string")
    fields.finish()
    return text


# In addition to the common ones.
COMPLETION_HARMLESS: Mapping[str, tuple[Harmless, str]] = {
    **_HARMLESS,
    "best_of": (only(1), "leave it out, or request n answers and choose one"),
    "echo": (false, "put the prompt before the answer yourself"),
    "suffix": (only(""), "leave it out"),
}


def read_completion(body: Mapping[str, Any]) -> OpenAIRequest:
    """Read the body of a request.

    Raises:
        HttpError: it is not valid, or requests something unsupported.
    """
    fields = Fields(body)
    model = read_model(fields)
    prompts = _prompts(fields.value("prompt"))
    logprobs = _logprobs(fields)
    sampling = read_sampling(fields, "max_tokens")
    count = read_count(fields, len(prompts))
    stream, include_usage = read_stream(fields)
    fields.harmless(COMPLETION_HARMLESS)
    fields.finish()
    requests = [
        varied
        for prompt in prompts
        for varied in vary(inference_pb2.GenerateRequest(prompt=prompt, sampling=sampling, logprobs=logprobs), count)
    ]
    return OpenAIRequest(
        kind="text",
        model=model,
        requests=tuple(requests),
        prompts=len(prompts),
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs,
    )


def _prompts(value: Any) -> list[str]:
    if value is None:
        raise wrong("prompt", "is missing: expected a string or an array of strings")
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise wrong("prompt", f"is {kind_of(value)}: expected a string or an array of strings")
    if not values:
        raise wrong("prompt", "is empty: expected a string or an array of strings")
    for number, text in enumerate(values):
        if isinstance(text, int | list) and not isinstance(text, bool):
            raise unsupported("prompt", "is an array of token ids: expected a string or an array of strings")
        if not isinstance(text, str):
            raise wrong(f"prompt[{number}]", f"is {kind_of(text)}: expected a string")
    if len(values) > MOST_ANSWERS:
        raise unsupported("prompt", f"has {len(values)} strings: expected at most {MOST_ANSWERS}")
    return values


def _logprobs(fields: Fields) -> bool:
    """Whether log-probabilities are requested, which 0 does: the value counts alternatives beside the chosen token."""
    count = fields.integer("logprobs")
    if count:
        advice = "expected 0, which gives the log-probability of each chosen token"
        raise unsupported("logprobs", f"is {count}: {advice}")
    return count is not None
