"""What the client gives back: plain records, made from the messages of the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modelwright.grpc_server.client.errors import ServerError
from modelwright.v1 import common_pb2, model_pb2

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model that answered.

    Attributes:
        name: its name in the registry.
        version: its version.
        digest: the sha256 over its files, in hexadecimal.
        adapter_digest: the same of the adapter, where one answered.
        alias: the alias that led to it, where the request named one.
        alias_generation: how often that alias had moved on the server.
    """

    name: str
    version: int
    digest: str
    adapter_digest: str | None = None
    alias: str | None = None
    alias_generation: int | None = None

    @property
    def address(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How many tokens a request took: those of the prompt, and those that were generated."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class Generation:
    """An answer.

    Attributes:
        text: without the end token or the stop text.
        thinking: what the model thought before it answered; empty where it did not, or only continued a prompt.
        finish: why it ended: "stop", "length" (max_tokens reached) or "tool_calls".
        usage: what it took.
        served: what answered.
        token_ids: the generated tokens.
        logprobs: the natural logarithm of each token's probability, where asked for.
    """

    text: str
    finish: Finish
    usage: Usage
    served: Served
    thinking: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is new of an answer: of its text, and of the thinking before it."""

    text: str = ""
    thinking: str = ""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text or a conversation as the model sees it; the context holds `context_length` tokens, the answer included."""

    token_ids: tuple[int, ...]
    context_length: int
    served: Served


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a server.

    Attributes:
        name: its name in the registry.
        version: its version.
        digest: the sha256 over its files, in hexadecimal.
        state: "ready", "loading", "draining" when it takes no new requests, or "failed" when it could not be loaded.
        pinned: whether requests may name it by its name for good, or only as long as an alias points to it.
        aliases: the aliases that point to it on this server.
        engine: the engine's name.
        abilities: what the engine can do beyond greedy decoding.
        context_length: the most tokens of prompt and answer together.
        active_requests: how many it is answering.
        error: why it could not be loaded, if its state is "failed".
    """

    name: str
    version: int
    digest: str
    state: str
    pinned: bool
    aliases: tuple[str, ...]
    engine: str
    abilities: tuple[str, ...]
    context_length: int
    active_requests: int
    error: str | None = None

    @property
    def address(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.version}"

    @property
    def lasting_address(self) -> str:
        """The address to go on asking: a model that only an alias keeps here leaves when that alias moves."""
        return self.address if self.pinned or not self.aliases else f"@{self.aliases[0]}"


@dataclass(frozen=True, kw_only=True)
class Alias:
    """An alias as a server routes it.

    Attributes:
        alias: its name, without the "@".
        name: the model's name.
        version: the model's version.
        digest: the sha256 over the model's files, in hexadecimal.
        generation: how often the alias has moved.
        etag: for `set_alias`, which moves it only if nobody else has since.
    """

    alias: str
    name: str
    version: int
    digest: str
    generation: int
    etag: str

    @property
    def address(self) -> str:
        """`NAME@VERSION` of the model that it points to."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a server has at one moment: models by name and version, aliases sorted."""

    models: tuple[Model, ...]
    aliases: tuple[Alias, ...]


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A model that a server has no more."""

    name: str
    version: int
    digest: str

    @property
    def address(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.version}"


# What a watch tells: all there is, a model that changed, one that is gone, an alias that moved.
Change = Snapshot | Model | Gone | Alias


def to_served(served: Any) -> Served:
    """Who answered."""
    return Served(
        name=served.name,
        version=served.version,
        digest=served.digest,
        adapter_digest=served.adapter_digest if served.HasField("adapter_digest") else None,
        alias=served.alias if served.HasField("alias") else None,
        alias_generation=served.alias_generation if served.HasField("alias_generation") else None,
    )


def to_usage(usage: Any) -> Usage:
    """What a request took."""
    return Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def to_finish(reason: int) -> Finish:
    """Why an answer ended."""
    finishes: dict[int, Finish] = {
        common_pb2.FINISH_REASON_STOP: "stop",
        common_pb2.FINISH_REASON_LENGTH: "length",
        common_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    }
    return finishes[reason]


def to_generation(response: Any, text: str, thinking: str = "") -> Generation:
    """An answer; its text is where the kind of response has it."""
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
    """What a watch tells; None for what only a newer client knows."""
    kind = response.WhichOneof("event")
    told: Any = getattr(response, kind) if kind else None
    if kind == "model":
        return to_model(told)
    if kind == "route":
        return to_alias(told)
    if kind == "gone":
        return Gone(name=told.name, version=told.version, digest=told.digest)
    if kind == "snapshot":
        return Snapshot(models=tuple(map(to_model, told.models)), aliases=tuple(map(to_alias, told.routes)))
    return None


def choose_only(models: Sequence[Model], target: str) -> Model:
    """The only model that takes requests.

    Raises:
        ServerError: there are several, and the error names them, or none.
    """
    served = [model for model in models if model.state == "ready"]
    if len(served) == 1:
        return served[0]
    choices = [f"@{alias}" for model in served for alias in model.aliases] + [model.address for model in served]
    message = f"the server at {target} has several models: name one of {', '.join(choices)}"
    raise ServerError("INVALID_ARGUMENT", message if served else f"the server at {target} has no model")
