"""A request's hold on a model, and where its address led."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from attrs import field, frozen

from modelwright.grpc_server.errors import ended_early
from modelwright.grpc_server.models.loaded import LoadedModel
from modelwright.v1 import common_pb2


@frozen(kw_only=True)
class Route:
    """An alias as this server routes it; `generation` counts its moves, beginning at the registry's count."""

    alias: str
    model: LoadedModel
    generation: int

    @property
    def etag(self) -> str:
        """Changes with every move."""
        return f"{self.generation}-{self.model.version.digest[:16]}"


@frozen
class Cutoff:
    """The running requests, to be ended all at once when a server waits for them no longer."""

    _cancels: dict[object, Callable[[], None]] = field(factory=dict)
    _over: asyncio.Event = field(factory=asyncio.Event)

    @contextlib.contextmanager
    def running(self, cancel: Callable[[], None]) -> Iterator[None]:
        """A request runs; `cancel` ends it early.

        Raises:
            RequestError: it is too late to begin (UNAVAILABLE).
        """
        if self._over.is_set():
            raise ended_early()
        mark = object()
        self._cancels[mark] = cancel
        try:
            yield
        finally:
            del self._cancels[mark]

    def cut(self) -> None:
        """End all that runs, and let nothing begin."""
        self._over.set()
        for cancel in list(self._cancels.values()):
            cancel()


@frozen(kw_only=True)
class Lease:
    """A model held for one request, and the route that led to it: both stay what they are to the request's end."""

    model: LoadedModel
    cutoff: Cutoff
    route: Route | None = None

    def served(self) -> common_pb2.ServedModel:
        """What a response says of who answered."""
        version = self.model.version
        return common_pb2.ServedModel(
            name=version.name,
            version=version.version,
            digest=version.digest,
            alias=self.route.alias if self.route else None,
            alias_generation=self.route.generation if self.route else None,
        )
