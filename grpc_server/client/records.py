"""The plain records that the client returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model that answered.

    Attributes:
        name: its name in the registry.
        version: its version.
        digest: the sha256 over its files, in hexadecimal.
        adapter_digest: the same for the adapter, if one answered.
        alias: the alias that led to it, if the request named one.
        alias_generation: number of times that the alias had moved on the server.
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
    """Number of tokens in the prompt, and number of generated tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class Generation:
    """An answer.

    Attributes:
        text: without the end token or the stop text.
        thinking: the model's thinking before the answer; empty if there is none, or if it only continued a prompt.
        finish: why it ended: "stop", "length" (max_tokens reached) or "tool_calls".
        usage: its tokens.
        served: the model that answered.
        token_ids: the generated tokens.
        logprobs: the natural logarithm of each token's probability, if requested.
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
    """New text of an answer, and new thinking before it."""

    text: str = ""
    thinking: str = ""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of a text or conversation; the context holds `context_length` tokens, including the answer."""

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
        state: "ready", "loading", "draining" (takes no new requests) or "failed" (could not be loaded).
        pinned: whether it is served by its name; if not, it is freed when no alias points to it.
        aliases: the aliases that point to it on this server.
        engine: the engine's name.
        abilities: the engine's features beyond greedy decoding.
        context_length: maximum number of tokens, prompt and answer together.
        active_requests: number of requests that it is answering.
        error: the reason if its state is "failed".
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
        """The address to use for later requests: a model without a pin is freed when its alias moves."""
        return self.address if self.pinned or not self.aliases else f"@{self.aliases[0]}"


@dataclass(frozen=True, kw_only=True)
class Alias:
    """An alias as a server routes it.

    Attributes:
        alias: its name, without the "@".
        name: the model's name.
        version: the model's version.
        digest: the sha256 over the model's files, in hexadecimal.
        generation: number of times that the alias has moved.
        etag: for `set_alias`, which then fails if somebody else has moved it since.
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
    """All models of a server at one moment, by name and version, and its aliases, sorted."""

    models: tuple[Model, ...]
    aliases: tuple[Alias, ...]


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A model that a server no longer has."""

    name: str
    version: int
    digest: str

    @property
    def address(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.version}"


# An event of a watch: everything, a model that changed, one that is gone, an alias that moved.
Change = Snapshot | Model | Gone | Alias
