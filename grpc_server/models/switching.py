"""Change what a server serves: load and unload models, and switch a route in one step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import grpc
from attrs import frozen

from modelwright.core.api.components import EngineSpec, Registry
from modelwright.core.api.errors import AliasConflictError, ModelNotFoundError, ModelwrightError, UsageError
from modelwright.core.api.registry import ModelVersion, check_alias
from modelwright.core.registry import Address, parse_address, resolve
from modelwright.grpc_server.errors import RequestError, invalid, not_found, shutting_down
from modelwright.grpc_server.models.loaded import LoadedModel, Route, load_model
from modelwright.grpc_server.models.served import Key, ServedModels
from modelwright.grpc_server.models.watching import describe_failed, describe_gone, describe_loading, describe_route

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Switched:
    """The result of a switch: the current route, whether it moved, and whether the registry's alias moved too."""

    route: Route
    changed: bool
    persisted: bool


class ModelTable(ServedModels):
    """The models and routes of a server, and their changes. All but `load` runs on the event loop.

    Args:
        registry: the source of the models.
        spec: the default engine.
        max_requests: maximum number of requests that run or wait at once.
        engines: returns another engine by name or raises a UsageError; None if there is no other.
    """

    def __init__(
        self,
        registry: Registry,
        spec: EngineSpec,
        *,
        max_requests: int,
        engines: Callable[[str], EngineSpec] | None = None,
    ) -> None:
        super().__init__(max_requests=max_requests)
        self._registry = registry
        self._spec = spec
        self._engines = engines
        self._changing = asyncio.Lock()

    # Loading at the start

    def load(self, addresses: Iterable[str]) -> None:
        """Load the models at `addresses` before the server starts, which takes long.

        A model given by its name stays until it is unloaded; one given by an alias stays while an alias points to it.
        Every alias of the registry that points to a model loaded here becomes a route.

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
            ModelwrightError: one of them cannot generate.
        """
        for model in self._models.values():
            await model.warm()

    # Loading and unloading while it serves

    async def pin(self, target: str, *, engine: str | None = None) -> LoadedModel:
        """Load and warm a model of the registry, and serve it by its name. A loaded model is only pinned.

        A loading that has begun is finished even if the caller disconnects.

        Args:
            target: its address; an alias is looked up in the registry.
            engine: the name of the engine that runs it; None means the one that already runs it, or the server's.

        Raises:
            RequestError: there is no such model (NOT_FOUND) or engine (INVALID_ARGUMENT), the model cannot be loaded or
                runs on another engine already (FAILED_PRECONDITION), or the server is going down (UNAVAILABLE).
        """
        return await self._to_the_end(f"loading {target}", self._pin(target, engine))

    async def _pin(self, target: str, engine: str | None) -> LoadedModel:
        spec = self._engine(engine)
        version = await self._registered(_address(target, "address"))
        async with self._change(), self._obtained(version, spec) as model:
            if engine is not None and model.spec.name != engine:
                raise _not_loadable(
                    version, f"{model.address} already runs on the engine {model.spec.name!r}: unload it first"
                )
            model.pinned = True
            self._take(model)
            self.changes.tell(self.describe(model))
            return model

    def _engine(self, name: str | None) -> EngineSpec:
        if name is None or name == self._spec.name:
            return self._spec
        if self._engines is None:
            raise invalid("engine", f"is {name!r}, but this server has only {self._spec.name!r}")
        try:
            return self._engines(name)
        except UsageError as error:
            raise invalid("engine", f"is wrong: {error}") from error

    def unpin(self, address: str) -> LoadedModel:
        """Stop serving a model by its name. It stays while an alias points to it or a request holds it.

        Raises:
            RequestError: it is not served (NOT_FOUND), or the address is not valid (INVALID_ARGUMENT).
        """
        model = self.find(address, field="address").model
        if model.pinned:
            model.pinned = False
            self._left(model)
        return model

    # Switching

    async def switch(self, alias: str, target: str, *, etag: str | None = None, persist: bool = False) -> Switched:
        """Point an alias to another model: load, warm, swap, drain. Nothing changes unless all of it succeeds.

        A switch that has begun is finished even if the caller disconnects, so that nothing is left half loaded.

        Args:
            alias: without its "@"; created if it does not exist.
            target: an address; an alias is looked up here, then in the registry.
            etag: the route's etag as the caller read it; "" if there was none.
            persist: whether the registry's alias moves too.

        Raises:
            RequestError: the alias has another etag (ABORTED), the target does not exist (NOT_FOUND) or does not load
                (FAILED_PRECONDITION), or the server is going down (UNAVAILABLE).
            ModelwrightError: the registry refused or failed.
        """
        work = self._switch(alias, target, etag=etag, persist=persist)
        return await self._to_the_end(f"switching @{alias} to {target}", work)

    async def _switch(self, alias: str, target: str, *, etag: str | None, persist: bool) -> Switched:
        try:
            check_alias(alias)
        except UsageError as error:
            raise invalid("alias", f"is wrong: {error}") from error
        async with self._change():
            old = self._routes.get(alias)
            _check_etag(alias, old, etag)
            kept = await asyncio.to_thread(self._kept_generation, alias) if persist or old is None else None
            async with self._obtained(await self._version(target), self._spec) as model:
                moved = await self._persist(alias, model, kept, old) if persist else 0
                if old is not None and old.model is model:
                    return Switched(route=old, changed=False, persisted=persist)
                generation = max((old.generation if old else kept or 0) + 1, moved)
                route = Route(alias=alias, model=model, generation=generation)
                self._routes[alias] = route
                self._take(model)
                self.changes.tell(self.describe(model))
                self.changes.tell(describe_route(route))
            if old is not None:
                self._left(old.model)
            return Switched(route=route, changed=True, persisted=persist)

    def _kept_generation(self, alias: str) -> int:
        """The generation of the registry's alias; 0 if it does not exist."""
        try:
            return self._registry.resolve(alias).generation
        except ModelNotFoundError:
            return 0

    async def _persist(self, alias: str, model: LoadedModel, kept: int | None, old: Route | None) -> int:
        """Move the registry's alias; returns its new generation."""
        name, version = model.version.name, model.version.version
        try:
            moved = await asyncio.to_thread(self._registry.set_alias, alias, name, version, expected=kept)
        except AliasConflictError as error:
            raise _conflict(alias, str(error), old) from error
        except ModelNotFoundError as error:
            raise not_found(str(error), model.address) from error
        return moved.generation

    async def _version(self, target: str) -> ModelVersion:
        address = _address(target, "target")
        route = self._routes.get(address.alias) if address.alias is not None else None
        if route is not None:
            return route.model.version
        if address.name is not None and address.version is not None:
            loaded = self._models.get((address.name, address.version))
            if loaded is not None:
                return loaded.version
        return await self._registered(address)

    # Shared by loading, unloading and switching

    async def _to_the_end(self, what: str, work: Coroutine[Any, Any, Result]) -> Result:
        """Run work that, once begun, is finished even if the caller disconnects."""
        task = self._spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: _log_outcome(what, done))
            raise

    @contextlib.asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """Do one change after the other, and none once the server shuts down."""
        if self._closing:
            raise shutting_down()
        async with self._changing:
            if self._closing:
                raise shutting_down()
            yield

    async def _registered(self, address: Address) -> ModelVersion:
        try:
            return await asyncio.to_thread(resolve, self._registry, address)
        except ModelNotFoundError as error:
            raise not_found(str(error), str(address)) from error

    @contextlib.asynccontextmanager
    async def _obtained(self, version: ModelVersion, spec: EngineSpec) -> AsyncIterator[LoadedModel]:
        """The model, loaded and warm. It is freed at the end of the block unless the block has `_take`n it."""
        key = (version.name, version.version)
        model = self._models.get(key)
        if model is not None:
            with self._holding(model):
                yield model
            return
        self._loading[key] = describe_loading(version, spec)
        self.changes.tell(self._loading[key])
        try:
            model = await self._loaded(version, spec)
            with self._freed_unless_taken(model):
                if self._closing:
                    raise shutting_down()
                yield model
        finally:
            self._loading.pop(key, None)

    async def _loaded(self, version: ModelVersion, spec: EngineSpec) -> LoadedModel:
        try:
            model = await asyncio.to_thread(load_model, self._registry, version, spec)
            try:
                await model.warm()
            except ModelwrightError:
                await asyncio.to_thread(model.close)
                raise
        except ModelwrightError as error:
            self.changes.tell(describe_failed(version, spec, str(error)))
            raise _not_loadable(version, str(error)) from error
        except Exception as error:
            self.changes.tell(describe_failed(version, spec, f"{type(error).__name__}: {error}"))
            raise
        return model

    @contextlib.contextmanager
    def _freed_unless_taken(self, model: LoadedModel) -> Iterator[None]:
        try:
            yield
        finally:
            if self._models.get((model.version.name, model.version.version)) is not model:
                self._spawn(asyncio.to_thread(model.close))
                self.changes.tell(describe_gone(model.version))

    def _take(self, model: LoadedModel) -> None:
        """Serve the model from now on."""
        key = (model.version.name, model.version.version)
        self._loading.pop(key, None)
        self._models[key] = model

    def _left(self, model: LoadedModel) -> None:
        """Handle that an alias, or its name, no longer leads to the model."""
        self._free_if_unused(model)
        if self._models.get((model.version.name, model.version.version)) is model:
            self.changes.tell(self.describe(model))


def _log_outcome(what: str, done: asyncio.Task[Any]) -> None:
    """Log the outcome of a change whose caller has disconnected."""
    if done.cancelled():
        log.warning("%s was cancelled", what)
    elif (error := done.exception()) is not None:
        log.error("%s failed: %s", what, error)
    else:
        log.info("%s is done", what)


def _address(text: str, field: str) -> Address:
    if not text:
        raise invalid(field, "is empty: expected the address of a model")
    try:
        return parse_address(text)
    except UsageError as error:
        raise invalid(field, f"is wrong: {error}") from error


def _not_loadable(version: ModelVersion, message: str) -> RequestError:
    metadata = {"address": version.address}
    return RequestError(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_LOADABLE", message, metadata=metadata)


def _conflict(alias: str, message: str, route: Route | None) -> RequestError:
    metadata = {"alias": alias, "etag": route.etag if route else ""}
    return RequestError(grpc.StatusCode.ABORTED, "ALIAS_CONFLICT", message, metadata=metadata)


def _check_etag(alias: str, route: Route | None, etag: str | None) -> None:
    current = route.etag if route else ""
    if etag is None or etag == current:
        return
    there = f"points to {route.model.address} with etag {current!r}" if route else "does not exist on this server"
    message = (
        f"alias @{alias} has changed since it was read: it {there}, but the request has etag {etag!r}: read it again"
    )
    raise _conflict(alias, message, route)
