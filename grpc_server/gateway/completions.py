"""/v1/completions: from OpenAI's JSON to the protocol's GenerateRequest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelwright.grpc_server.gateway.body import kind_of
from modelwright.grpc_server.gateway.errors import unsupported, wrong
from modelwright.grpc_server.gateway.fields import Fields, Harmless, false, only
from modelwright.grpc_server.gateway.request import (
    HARMLESS,
    MOST_ANSWERS,
    Asked,
    read_count,
    read_model,
    read_sampling,
    read_stream,
    vary,
)
from modelwright.v1 import inference_pb2

# Beside HARMLESS.
_HARMLESS: Mapping[str, tuple[Harmless, str]] = {
    **HARMLESS,
    "best_of": (only(1), "leave it out, or ask for n answers and choose"),
    "echo": (false, "put the prompt before the answer yourself"),
    "suffix": (only(""), "leave it out"),
}


def read_completion(body: Mapping[str, Any]) -> Asked:
    """What a body asks.

    Raises:
        HttpError: it cannot be read, or asks for what this server does not do.
    """
    fields = Fields(body)
    model = read_model(fields)
    prompts = _prompts(fields.value("prompt"))
    logprobs = _logprobs(fields)
    sampling = read_sampling(fields, "max_tokens")
    count = read_count(fields, len(prompts))
    stream, include_usage = read_stream(fields)
    fields.harmless(_HARMLESS)
    fields.finish()
    requests = [
        varied
        for prompt in prompts
        for varied in vary(inference_pb2.GenerateRequest(prompt=prompt, sampling=sampling, logprobs=logprobs), count)
    ]
    return Asked(
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
        raise wrong("prompt", "is missing: expected a text, or an array of texts")
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise wrong("prompt", f"is {kind_of(value)}: expected a text, or an array of texts")
    if not values:
        raise wrong("prompt", "is empty: expected a text, or an array of texts")
    for number, text in enumerate(values):
        if isinstance(text, int | list) and not isinstance(text, bool):
            raise unsupported("prompt", "is an array of token ids: this server takes texts only")
        if not isinstance(text, str):
            raise wrong(f"prompt[{number}]", f"is {kind_of(text)}: expected a text")
    if len(values) > MOST_ANSWERS:
        raise unsupported("prompt", f"has {len(values)} texts: this server takes {MOST_ANSWERS} at once")
    return values


def _logprobs(fields: Fields) -> bool:
    """Here a number: of how many likely tokens beside the chosen one."""
    count = fields.integer("logprobs")
    if count:
        advice = "only the log-probability of the token that was chosen can be had: say 0"
        raise unsupported("logprobs", f"is {count}: {advice}")
    return count is not None
