"""The models of a server, the routes of its aliases, and the requests that hold a model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import grpc
from attrs import field, frozen

from modelwright.core.api.errors import UsageError
from modelwright.core.registry import parse_address
from modelwright.grpc_server.errors import RequestError, ended_early, invalid, not_found, shutting_down
from modelwright.grpc_server.models.loaded import LoadedModel, Route
from modelwright.grpc_server.models.watching import Changes, describe_gone, describe_loaded, describe_route
from modelwright.v1 import common_pb2, model_pb2


@frozen
class Cutoff:
    """Ends all running requests at once, when a server no longer waits for them."""

    _cancels: dict[object, Callable[[], None]] = field(factory=dict)
    _over: asyncio.Event = field(factory=asyncio.Event)

    @contextlib.contextmanager
    def running(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Count a running request; `cancel` ends it early.

        Raises:
            RequestError: the server is ending its requests (UNAVAILABLE).
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
        """Cancel running requests, and refuse new ones."""
        self._over.set()
        for cancel in list(self._cancels.values()):
            cancel()


@frozen(kw_only=True)
class Lease:
    """A model that one request holds, and the route that led to it. Neither changes before the request ends."""

    model: LoadedModel
    cutoff: Cutoff
    route: Route | None = None

    def served(self) -> common_pb2.ServedModel:
        """The model as a response names it."""
        version = self.model.version
        return common_pb2.ServedModel(
            name=version.name,
            version=version.version,
            digest=version.digest,
            alias=self.route.alias if self.route else None,
            alias_generation=self.route.generation if self.route else None,
        )


Key = tuple[str, int]
Result = TypeVar("Result")

# Seconds that clients of a full server are advised to wait.
RETRY_SECONDS = 1.0


class ServedModels:
    """The models and routes of a server, for its callers. All of it runs on the event loop, so each step is atomic.

    Args:
        max_requests: maximum number of requests that run or wait at once.

    Attributes:
        changes: events of the models and routes, for watchers.
    """

    def __init__(self, *, max_requests: int) -> None:
        self.changes = Changes()
        self._max_requests = max_requests
        self._models: dict[Key, LoadedModel] = {}
        self._loading: dict[Key, model_pb2.Model] = {}
        self._routes: dict[str, Route] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._cutoff = Cutoff()
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # Reading

    def models(self) -> list[LoadedModel]:
        """The loaded models, by name, then version."""
        return [self._models[key] for key in sorted(self._models)]

    def routes(self) -> list[Route]:
        """The routes, by alias."""
        return [self._routes[alias] for alias in sorted(self._routes)]

    def wants(self, model: LoadedModel) -> bool:
        """Whether new requests may reach the model; if not, it drains."""
        return model.pinned or any(route.model is model for route in self._routes.values())

    def describe(self, model: LoadedModel) -> model_pb2.Model:
        """The description of the model for callers."""
        aliases = [route.alias for route in self.routes() if route.model is model]
        return describe_loaded(model, aliases, ready=self.wants(model))

    def snapshot(self) -> model_pb2.ModelsSnapshot:
        """All models, also those that are loading, and all routes, as described to callers."""
        models = {key: self.describe(model) for key, model in self._models.items()} | self._loading
        return model_pb2.ModelsSnapshot(
            models=[models[key] for key in sorted(models)], routes=[describe_route(route) for route in self.routes()]
        )

    def find(self, text: str, *, field: str = "model") -> Lease:
        """Find the model that an address currently leads to.

        Args:
            text: the address.
            field: the request's field with the address, for the error.

        Raises:
            RequestError: it is not an address (INVALID_ARGUMENT), or leads to nothing that is served (NOT_FOUND).
        """
        if not text:
            raise invalid(field, f"is empty: expected the address of a model ({self._listed()})")
        try:
            address = parse_address(text)
        except UsageError as error:
            raise invalid(field, f"is wrong: {error}") from error
        if address.alias is not None:
            route = self._routes.get(address.alias)
            if route is None:
                raise not_found(f"this server does not serve the alias {text!r} ({self._listed()})", text)
            return Lease(model=route.model, cutoff=self._cutoff, route=route)
        matching = [
            model
            for model in self.models()
            if model.version.name == address.name
            and address.version in (None, model.version.version)
            and self.wants(model)
        ]
        if not matching:
            raise not_found(f"this server does not serve the model {text!r} ({self._listed()})", text)
        return Lease(model=matching[-1], cutoff=self._cutoff)

    def _listed(self) -> str:
        served = [f"@{route.alias}" for route in self.routes()]
        served += [model.address for model in self.models() if self.wants(model)]
        return f"it serves: {', '.join(served) or 'nothing'}"

    # Requests

    @contextlib.contextmanager
    def lease(self, address: str) -> Iterator[Lease]:
        """Hold the model at `address` for one request.

        Raises:
            RequestError: as `find`; the server is full (RESOURCE_EXHAUSTED) or going down (UNAVAILABLE).
        """
        if self._closing:
            raise shutting_down()
        if self._requests >= self._max_requests:
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_REQUESTS",
                f"the server is full, with {self._requests} requests running: try again later",
                metadata={"limit": self._max_requests},
                retry_after=RETRY_SECONDS,
            )
        lease = self.find(address)
        self._requests += 1
        self._idle.clear()
        try:
            with self._holding(lease.model):
                yield lease
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    @contextlib.contextmanager
    def _holding(self, model: LoadedModel) -> Iterator[LoadedModel]:
        model.active += 1
        try:
            yield model
        finally:
            model.active -= 1
            self._free_if_unused(model)

    def _free_if_unused(self, model: LoadedModel) -> None:
        key = (model.version.name, model.version.version)
        if model.active or self.wants(model) or self._models.get(key) is not model:
            return
        del self._models[key]
        self._spawn(asyncio.to_thread(model.close))
        self.changes.tell(describe_gone(model.version))

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # Shutting down

    @property
    def closing(self) -> bool:
        """Whether the server is shutting down and refuses requests."""
        return self._closing

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait at most `seconds` for the running ones."""
        self._closing = True
        self.changes.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def cut(self, seconds: float) -> None:
        """End the running requests, and give them `seconds` to inform their callers."""
        self._cutoff.cut()
        await self.drain(seconds)

    async def close(self) -> None:
        """Finish changes that have begun, and free every engine."""
        self._closing = True
        self.changes.close()
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        models, self._models, self._routes = self.models(), {}, {}
        for model in models:
            await asyncio.to_thread(model.close)
