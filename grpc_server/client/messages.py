"""Make the protocol's requests from plain values, and records from its responses, for both clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message

from modelwright.grpc_server.client.errors import ServerError, ended_without_end
from modelwright.grpc_server.client.records import (
    Alias,
    Change,
    Finish,
    Generation,
    Gone,
    Model,
    Part,
    Served,
    Snapshot,
    Tokens,
    Usage,
)
from modelwright.v1 import common_pb2, inference_pb2, model_pb2

Request = TypeVar("Request", bound=Message)
Messages = str | Iterable[Mapping[str, str]]


class SamplingOptions(TypedDict, total=False):
    """How the next tokens are chosen. An option that is left out has the server's default.

    Attributes:
        max_tokens: maximum number of tokens to generate.
        temperature: 0 always takes the likeliest token.
        top_p: sample from the smallest set of tokens whose probabilities reach this sum.
        top_k: sample from this number of likeliest tokens; 0 means no limit.
        seed: makes sampling repeatable.
        stop: one or several texts that end the answer.
        logprobs: whether the answer has each token's log-probability.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str]
    logprobs: bool


def text_request(kind: type[Request], model: str, prompt: str, sampling: SamplingOptions) -> Request:
    """Make a GenerateRequest or GenerateStreamRequest.

    Raises:
        ValueError: a message cannot hold a value.
    """
    return _made(kind, model=model, prompt=prompt, **_sampling(sampling))


def chat_request(kind: type[Request], model: str, messages: Messages, sampling: SamplingOptions) -> Request:
    """Make a ChatRequest or ChatStreamRequest.

    Raises:
        ValueError: a message cannot hold a value, or a turn is not valid.
    """
    return _made(kind, model=model, messages=_messages(messages), **_sampling(sampling))


def tokenize_request(model: str, text: Messages) -> inference_pb2.TokenizeRequest:
    """Make a TokenizeRequest for a text or for messages.

    Raises:
        ValueError: a message cannot hold a value, or a turn is not valid.
    """
    if isinstance(text, str):
        return inference_pb2.TokenizeRequest(model=model, text=text)
    conversation = common_pb2.Conversation(messages=_messages(text))
    return inference_pb2.TokenizeRequest(model=model, conversation=conversation)


def _made(kind: type[Request], **fields: Any) -> Request:
    return kind(**fields)


def _sampling(sampling: SamplingOptions) -> dict[str, Any]:
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
        raise ValueError(f"{message!r} is not a message: {error}") from error


def to_served(served: Any) -> Served:
    """The model that answered."""
    return Served(
        name=served.name,
        version=served.version,
        digest=served.digest,
        adapter_digest=served.adapter_digest if served.HasField("adapter_digest") else None,
        alias=served.alias if served.HasField("alias") else None,
        alias_generation=served.alias_generation if served.HasField("alias_generation") else None,
    )


def to_usage(usage: Any) -> Usage:
    """The tokens that a request took."""
    return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def to_finish(reason: int) -> Finish:
    """The reason why an answer ended."""
    finishes: dict[int, Finish] = {
        common_pb2.FINISH_REASON_STOP: "stop",
        common_pb2.FINISH_REASON_LENGTH: "length",
        common_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    }
    return finishes[reason]


def to_generation(response: Any, text: str, thinking: str = "") -> Generation:
    """An answer, from either kind of response."""
    return Generation(
        text=text,
        thinking=thinking,
        finish=to_finish(response.finish_reason),
        usage=to_usage(response.usage),
        served=to_served(response.served),
        token_ids=tuple(response.token_ids),
        logprobs=tuple(response.logprobs),
    )


def to_model(model: Any) -> Model:
    """A model of a server."""
    return Model(
        name=model.name,
        version=model.version,
        digest=model.digest,
        state=model_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
        pinned=model.pinned,
        aliases=tuple(model.aliases),
        engine=model.engine,
        abilities=tuple(model.abilities),
        context_length=model.context_length,
        active_requests=model.active_requests,
        error=model.error if model.HasField("error") else None,
    )


def to_alias(route: Any) -> Alias:
    """An alias of a server."""
    return Alias(
        alias=route.alias,
        name=route.name,
        version=route.version,
        digest=route.digest,
        generation=route.generation,
        etag=route.etag,
    )


def to_tokens(response: Any) -> Tokens:
    """The tokens of a text."""
    return Tokens(
        token_ids=tuple(response.token_ids),
        context_length=response.context_length,
        served=to_served(response.served),
    )


def to_change(response: Any) -> Change | None:
    """An event of a watch; None for a kind that only newer clients know."""
    kind = response.WhichOneof("event")
    event: Any = getattr(response, kind) if kind else None
    if kind == "model":
        return to_model(event)
    if kind == "route":
        return to_alias(event)
    if kind == "gone":
        return Gone(name=event.name, version=event.version, digest=event.digest)
    if kind == "snapshot":
        return Snapshot(models=tuple(map(to_model, event.models)), aliases=tuple(map(to_alias, event.routes)))
    return None


def choose_only(models: Sequence[Model], target: str) -> Model:
    """Return the only model that takes requests.

    Raises:
        ServerError: there is none, or there are several; the error names them.
    """
    served = [model for model in models if model.state == "ready"]
    if len(served) == 1:
        return served[0]
    choices = [f"@{alias}" for model in served for alias in model.aliases] + [model.address for model in served]
    message = f"the server at {target} has several models: name one of {', '.join(choices)}"
    raise ServerError("INVALID_ARGUMENT", message if served else f"the server at {target} has no model")


class AnswerSoFar:
    """An answer as far as it has arrived."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._start: inference_pb2.StreamStart | None = None
        self._end: inference_pb2.StreamEnd | None = None
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []

    @property
    def started(self) -> bool:
        """Whether the server has said which model answers."""
        return self._start is not None

    @property
    def ended(self) -> bool:
        """Whether the server has said why the answer ended."""
        return self._end is not None

    @property
    def served(self) -> Served:
        """The model that answers."""
        assert self._start is not None, "the stream has not begun"
        return to_served(self._start.served)

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens in the prompt, including the chat template."""
        assert self._start is not None, "the stream has not begun"
        return self._start.prompt_tokens

    @property
    def thinking(self) -> str:
        """The model's thinking so far."""
        return "".join(self._thinking)

    def add(self, event: Any) -> Part | None:
        """Add an event; returns the new text and thinking, or None if it has neither."""
        kind = event.WhichOneof("event")
        if kind == "start":
            self._start = event.start
        elif kind == "end":
            self._end = event.end
        elif kind == "delta":
            return self._delta(event.delta)
        return None

    def _delta(self, delta: inference_pb2.StreamDelta) -> Part | None:
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs
        if not (delta.text or delta.thinking):
            return None
        self._text.append(delta.text)
        self._thinking.append(delta.thinking)
        return Part(text=delta.text, thinking=delta.thinking)

    def generation(self) -> Generation:
        """The whole answer.

        Raises:
            ServerError: it has not ended.
        """
        if self._end is None:
            raise ended_without_end(self._target)
        return Generation(
            text="".join(self._text),
            thinking=self.thinking,
            finish=to_finish(self._end.finish_reason),
            usage=to_usage(self._end.usage),
            served=self.served,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
        )
