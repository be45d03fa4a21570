"""/v1/chat/completions: from OpenAI's JSON to the protocol's ChatRequest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelwright.grpc_server.gateway.body import kind_of
from modelwright.grpc_server.gateway.errors import unsupported, wrong
from modelwright.grpc_server.gateway.fields import Fields, Harmless, anything, false, only, switch
from modelwright.grpc_server.gateway.request import (
    HARMLESS,
    Asked,
    read_count,
    read_model,
    read_sampling,
    read_stream,
    vary,
)
from modelwright.v1 import common_pb2, inference_pb2

_NO_TOOLS = "tools are not supported: leave it out"

# Beside HARMLESS.
_HARMLESS: Mapping[str, tuple[Harmless, str]] = {
    **HARMLESS,
    "audio": (only(), "this server speaks no audio: leave it out"),
    "chat_template_kwargs": (only({}), "the template is the model's: leave it out"),
    "function_call": (only("none", "auto"), _NO_TOOLS),
    "functions": (only([]), _NO_TOOLS),
    "modalities": (only(["text"]), 'leave it out, or say ["text"]'),
    "parallel_tool_calls": (switch, _NO_TOOLS),
    "prediction": (only(), "leave it out"),
    "prompt_cache_key": (anything, ""),
    "prompt_cache_retention": (anything, ""),
    "reasoning_effort": (only(), "how long the model thinks is its own affair: leave it out"),
    "response_format": (only({"type": "text"}), 'leave it out, or say {"type": "text"}'),
    "safety_identifier": (anything, ""),
    "service_tier": (only("auto", "default"), "leave it out"),
    "store": (false, "this server keeps no answers: leave it out"),
    "tool_choice": (only("none", "auto"), _NO_TOOLS),
    "tools": (only([]), _NO_TOOLS),
    "top_logprobs": (only(0), "only the log-probability of the token that was chosen can be had: leave it out"),
    "verbosity": (only("medium"), "leave it out"),
    "web_search_options": (only(), "leave it out"),
}

# What comes back when a client sends an answer of ours, or of another server, as a turn of the assistant.
_HARMLESS_IN_ASSISTANT: Mapping[str, tuple[Harmless, str]] = {
    "annotations": (only([]), "leave it out"),
    "audio": (only(), "leave it out"),
    "function_call": (only(), _NO_TOOLS),
    "refusal": (only(), "put what was said into content"),
    "tool_calls": (only([]), _NO_TOOLS),
}

_ROLES = {
    "system": common_pb2.ROLE_SYSTEM,
    "developer": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}


def read_chat(body: Mapping[str, Any]) -> Asked:
    """What a body asks.

    Raises:
        HttpError: it cannot be read, or asks for what this server does not do.
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
    fields.harmless(_HARMLESS)
    fields.finish()
    requests = tuple(vary(request, count))
    return Asked(
        kind="chat",
        model=model,
        requests=requests,
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs,
        names={"max_tokens": max_tokens},
    )


def _max_tokens_name(fields: Fields) -> str:
    """OpenAI renamed the field; both names are in use, and one of the two is enough."""
    old, new = "max_tokens", "max_completion_tokens"
    if fields.has(new) and fields.has(old):
        raise wrong(new, f"and {old} are both set: they say the same, leave {old} out")
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
        raise unsupported(f"{where}.role", f"is {role}, and tools are not supported by this server: leave the turn out")
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
            raise wrong(where, "is missing: expected a text")
        return ""
    if not isinstance(value, list):
        raise wrong(where, f"is {kind_of(value)}: expected a text or an array of parts of text")
    return "".join(_part(part, f"{where}[{number}]") for number, part in enumerate(value))


def _part(value: Any, where: str) -> str:
    fields = Fields(value, f"{where}.")
    kind = fields.required_text("type", 'expected "text"')
    if kind != "text":
        raise unsupported(f"{where}.type", f"is {kind[:60]!r}: this server reads text only; leave the part out")
    text = fields.required_text("text", "expected a text")
    fields.finish()
    return text
