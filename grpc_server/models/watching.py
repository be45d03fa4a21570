"""Report changes of a server's models and routes to all watchers, in order and in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence

import grpc
from attrs import field, frozen

from modelwright.core.api.components import EngineSpec
from modelwright.core.api.registry import ModelVersion
from modelwright.grpc_server.errors import RequestError, shutting_down
from modelwright.grpc_server.models.loaded import LoadedModel, Route
from modelwright.v1 import model_pb2


def describe_loaded(model: LoadedModel, aliases: Sequence[str], *, ready: bool) -> model_pb2.Model:
    """Describe a model in memory; one that is not `ready` only finishes its requests."""
    state = model_pb2.MODEL_STATE_READY if ready else model_pb2.MODEL_STATE_DRAINING
    described = _model(model.version, model.spec, state)
    described.MergeFrom(
        model_pb2.Model(
            pinned=model.pinned,
            aliases=aliases,
            context_length=model.context_length,
            active_requests=model.active,
        )
    )
    described.load_time.FromDatetime(model.loaded)
    return described


def describe_loading(version: ModelVersion, spec: EngineSpec) -> model_pb2.Model:
    """Describe a model that is loading."""
    return _model(version, spec, model_pb2.MODEL_STATE_LOADING)


def describe_failed(version: ModelVersion, spec: EngineSpec, error: str) -> model_pb2.Model:
    """Describe a model that could not be loaded, with the reason."""
    described = _model(version, spec, model_pb2.MODEL_STATE_FAILED)
    described.error = error
    return described


def describe_gone(version: ModelVersion) -> model_pb2.ModelGone:
    """Describe a model that the server no longer has."""
    return model_pb2.ModelGone(name=version.name, version=version.version, digest=version.digest)


def describe_route(route: Route) -> model_pb2.Route:
    """Describe an alias and its target."""
    version = route.model.version
    return model_pb2.Route(
        alias=route.alias,
        name=version.name,
        version=version.version,
        digest=version.digest,
        generation=route.generation,
        etag=route.etag,
    )


def _model(version: ModelVersion, spec: EngineSpec, state: model_pb2.ModelState) -> model_pb2.Model:
    return model_pb2.Model(
        name=version.name,
        version=version.version,
        digest=version.digest,
        state=state,
        engine=spec.name,
        abilities=sorted(spec.abilities),
    )


Change = model_pb2.Model | model_pb2.ModelGone | model_pb2.Route

# A watcher that is further behind gets a new snapshot instead.
MOST_WAITING = 256
# Each watcher holds a stream open.
MOST_WATCHERS = 1000
# Seconds that a refused watcher is advised to wait.
RETRY_SECONDS = 10.0


class Snapshot:
    """Everything at the moment when it is read: what a watcher receives first, and after it has missed changes."""


@frozen(eq=False)
class _Watcher:
    """The changes that a watcher has not received yet."""

    waiting: deque[Change | Snapshot] = field(factory=lambda: deque([Snapshot()]))
    news: asyncio.Event = field(factory=asyncio.Event)

    def tell(self, change: Change | Snapshot) -> None:
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.clear()
            change = Snapshot()
        # A snapshot is taken when it is sent, so it includes all changes until then.
        if not (self.waiting and isinstance(self.waiting[-1], Snapshot)):
            self.waiting.append(change)
        self.news.set()


class Changes:
    """Reports changes to watchers. All of it runs on the event loop."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._over = False

    @property
    def watchers(self) -> int:
        """Number of watchers."""
        return len(self._watchers)

    def tell(self, change: Change) -> None:
        """Report a change to all watchers, as it is now, even if they read it late."""
        for watcher in self._watchers:
            watcher.tell(change)

    def close(self) -> None:
        """End every watcher after it has received the changes in its queue."""
        self._over = True
        for watcher in self._watchers:
            watcher.news.set()

    async def watch(self) -> AsyncGenerator[Change | Snapshot, None]:
        """Yield a `Snapshot`, then each change in order; a `Snapshot` replaces changes if too many are unread.

        Raises:
            RequestError: too many watch already (RESOURCE_EXHAUSTED), or the server is shutting down (UNAVAILABLE).
        """
        with self._watching() as watcher:
            while True:
                while watcher.waiting:
                    yield watcher.waiting.popleft()
                if self._over:
                    raise shutting_down()
                watcher.news.clear()
                await watcher.news.wait()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[_Watcher]:
        if self._over:
            raise shutting_down()
        if len(self._watchers) >= MOST_WATCHERS:
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_REQUESTS",
                f"the server is full, with {MOST_WATCHERS} clients watching its models: try again later",
                metadata={"limit": MOST_WATCHERS},
                retry_after=RETRY_SECONDS,
            )
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
