"""What the client gives back: plain records, made from the messages of the wire."""

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
