"""What a server serves: the loaded models, the aliases' routes, and the atomic switch of a route."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import grpc
from attrs import frozen

from modelwright.core.api.components import EngineSpec, Registry
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError, UsageError
from modelwright.core.api.registry import ModelVersion, check_alias
from modelwright.core.registry import Address, parse_address, resolve
from modelwright.grpc_server.errors import RequestError, invalid, not_found, shutting_down
from modelwright.grpc_server.models import LoadedModel, load_model
from modelwright.v1 import common_pb2

Key = tuple[str, int]
Result = TypeVar("Result")

# How long a client that met a full server is told to wait, in seconds.
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


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


@frozen(kw_only=True)
class Lease:
    """A model held for one request, and the route that led to it: both stay what they are to the request's end."""

    model: LoadedModel
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


@frozen(kw_only=True)
class Switched:
    """How a switch went: the route as it is now, whether it moved, and whether the registry's alias did too."""

    route: Route
    changed: bool
    persisted: bool


class ModelTable:
    """The models and routes of a server. All but `load` runs on the event loop, which makes each step atomic.

    Args:
        registry: where models come from.
        spec: the engine that runs them, one for each model.
        max_requests: how many requests may run or wait at once.
    """

    def __init__(self, registry: Registry, spec: EngineSpec, *, max_requests: int) -> None:
        self._registry = registry
        self._spec = spec
        self._max_requests = max_requests
        self._models: dict[Key, LoadedModel] = {}
        self._routes: dict[str, Route] = {}
        self._switching = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    # Loading at the start

    def load(self, addresses: Iterable[str]) -> None:
        """Load the models at `addresses`, before the server starts; takes long.

        A model named by its name is served by its name for good; one named by an alias for as long as an alias points
        to it. Every alias of the registry that points to a model loaded here becomes a route.

        Raises:
            ModelwrightError: an address leads nowhere, or a model cannot be loaded.
        """
        pointed: dict[str, tuple[Key, int]] = {}
        wanted: dict[Key, tuple[ModelVersion, bool]] = {}
        for address in dict.fromkeys(addresses):
            parsed = parse_address(address)
            if parsed.alias is None:
                version, pinned = resolve(self._registry, parsed), True
            else:
                # The alias is read once: it may move between two readings.
                version, pinned = self._aliased(parsed, pointed), False
            key = (version.name, version.version)
            wanted[key] = (version, pinned or (key in wanted and wanted[key][1]))
        for version, _ in wanted.values():
            for alias in version.aliases:
                if alias not in pointed:
                    there = self._registry.resolve(alias)
                    pointed[alias] = ((there.name, there.version), there.generation)
        for key, (version, pinned) in wanted.items():
            self._models[key] = load_model(self._registry, version, self._spec)
            self._models[key].pinned = pinned
        self._routes = {
            alias: Route(alias=alias, model=self._models[key], generation=generation)
            for alias, (key, generation) in pointed.items()
            if key in self._models
        }

    def _aliased(self, address: Address, pointed: dict[str, tuple[Key, int]]) -> ModelVersion:
        assert address.alias is not None
        try:
            there = self._registry.resolve(address.alias)
        except ModelNotFoundError:
            return resolve(self._registry, address)  # raises, and says which aliases there are
        pointed[address.alias] = ((there.name, there.version), there.generation)
        return self._registry.get(there.name, there.version)

    async def warm(self) -> None:
        """Warm every loaded model.

        Raises:
            ModelwrightError: one of them generates nothing.
        """
        for model in self._models.values():
            await model.warm()

    # Reading

    def models(self) -> list[LoadedModel]:
        """The loaded models, by name, then version."""
        return [self._models[key] for key in sorted(self._models)]

    def routes(self) -> list[Route]:
        """The routes, by alias."""
        return [self._routes[alias] for alias in sorted(self._routes)]

    def wants(self, model: LoadedModel) -> bool:
        """Whether new requests may reach the model; where not, it drains."""
        return model.pinned or any(route.model is model for route in self._routes.values())

    def find(self, text: str) -> Lease:
        """What an address leads to here and now.

        Raises:
            RequestError: it is no address (INVALID_ARGUMENT), or leads to nothing that is served (NOT_FOUND).
        """
        if not text:
            raise invalid("model", f"is empty: name what to ask ({self._listed()})")
        try:
            address = parse_address(text)
        except UsageError as error:
            raise invalid("model", f"is wrong: {error}") from error
        if address.alias is not None:
            route = self._routes.get(address.alias)
            if route is None:
                raise not_found(f"this server does not serve the alias {text!r} ({self._listed()})", text)
            return Lease(model=route.model, route=route)
        matching = [
            model
            for model in self.models()
            if model.version.name == address.name
            and address.version in (None, model.version.version)
            and self.wants(model)
        ]
        if not matching:
            raise not_found(f"this server does not serve the model {text!r} ({self._listed()})", text)
        return Lease(model=matching[-1])

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
                f"{self._requests} requests are running, as many as this server takes at once: try again later",
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

    def _spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # Switching

    async def switch(self, alias: str, target: str, *, etag: str | None = None, persist: bool = False) -> Switched:
        """Point an alias to another model: load, warm, swap, drain. Nothing changes unless all of it succeeds.

        A switch that has begun is finished even if the caller goes away, so that nothing is left half loaded.

        Args:
            alias: without its "@"; a new one is made.
            target: an address; an alias is looked up here, then in the registry.
            etag: the route's, as the caller read it; "" if there was none.
            persist: whether the registry's alias moves too.

        Raises:
            RequestError: the alias has another etag (ABORTED), the target is nowhere (NOT_FOUND) or cannot be loaded
                (FAILED_PRECONDITION), or the server is going down (UNAVAILABLE).
            ModelwrightError: the registry refused or failed.
        """
        if self._closing:
            raise shutting_down()
        work = self._spawn(self._switch(alias, target, etag=etag, persist=persist))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: _log_outcome(alias, target, done))
            raise

    async def _switch(self, alias: str, target: str, *, etag: str | None, persist: bool) -> Switched:
        try:
            check_alias(alias)
        except UsageError as error:
            raise invalid("alias", f"is wrong: {error}") from error
        async with self._switching:
            if self._closing:
                raise shutting_down()
            old = self._routes.get(alias)
            _check_etag(alias, old, etag)
            kept = await asyncio.to_thread(self._kept_generation, alias) if persist or old is None else None
            model = await self._obtain(target)
            if self._closing:
                raise shutting_down()
            with self._holding(model):
                moved = 0
                if persist:
                    name, version = model.version.name, model.version.version
                    moved = (
                        await asyncio.to_thread(self._registry.set_alias, alias, name, version, expected=kept)
                    ).generation
                if old is not None and old.model is model:
                    return Switched(route=old, changed=False, persisted=persist)
                generation = max((old.generation if old else kept or 0) + 1, moved)
                route = Route(alias=alias, model=model, generation=generation)
                self._routes[alias] = route
            if old is not None:
                self._free_if_unused(old.model)
            return Switched(route=route, changed=True, persisted=persist)

    def _kept_generation(self, alias: str) -> int:
        """The generation of the registry's alias; 0 where there is none."""
        try:
            return self._registry.resolve(alias).generation
        except ModelNotFoundError:
            return 0

    async def _obtain(self, target: str) -> LoadedModel:
        """The model at `target`, loaded and warm."""
        version = await self._version(target)
        key = (version.name, version.version)
        if key in self._models:
            return self._models[key]
        try:
            model = await asyncio.to_thread(load_model, self._registry, version, self._spec)
            try:
                await model.warm()
            except ModelwrightError:
                await asyncio.to_thread(model.close)
                raise
        except ModelwrightError as error:
            raise RequestError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "MODEL_NOT_LOADABLE",
                str(error),
                metadata={"address": version.address},
            ) from error
        self._models[key] = model
        return model

    async def _version(self, target: str) -> ModelVersion:
        try:
            address = parse_address(target)
        except UsageError as error:
            raise invalid("target", f"is wrong: {error}") from error
        route = self._routes.get(address.alias) if address.alias is not None else None
        if route is not None:
            return route.model.version
        if address.name is not None and address.version is not None:
            loaded = self._models.get((address.name, address.version))
            if loaded is not None:
                return loaded.version
        try:
            return await asyncio.to_thread(resolve, self._registry, address)
        except ModelNotFoundError as error:
            raise not_found(str(error), target) from error

    # Ending

    async def drain(self, seconds: float) -> None:
        """Take no more requests, and wait until those that run have ended or `seconds` have passed."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def close(self) -> None:
        """Finish what was begun, and free every engine."""
        self._closing = True
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        models, self._models, self._routes = self.models(), {}, {}
        for model in models:
            await asyncio.to_thread(model.close)


def _log_outcome(alias: str, target: str, done: asyncio.Task[Switched]) -> None:
    """Say how a switch went whose caller has left."""
    if done.cancelled():
        log.warning("switching @%s to %s was cancelled", alias, target)
    elif (error := done.exception()) is not None:
        log.error("switching @%s to %s failed: %s", alias, target, error)
    else:
        log.info("@%s points to %s", alias, done.result().route.model.address)


def _check_etag(alias: str, route: Route | None, etag: str | None) -> None:
    current = route.etag if route else ""
    if etag is None or etag == current:
        return
    there = f"points to {route.model.address} with etag {current!r}" if route else "does not exist on this server"
    raise RequestError(
        grpc.StatusCode.ABORTED,
        "ALIAS_CONFLICT",
        f"alias @{alias} has moved since it was read: it {there}, and etag says {etag!r}: read it again",
        metadata={"alias": alias, "etag": current},
    )
