"""A model in memory, with its engine and renderer, and loading one from the registry."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from attrs import define, field, frozen

from modelwright.core.api.components import Engine, EngineSpec, Registry
from modelwright.core.api.errors import MissingDependencyError, ModelwrightError
from modelwright.core.api.generation import GenerationRequest, Sampling
from modelwright.core.api.hf_folder import CONTEXT_KEYS
from modelwright.core.api.registry import ModelVersion
from modelwright.core.chat.renderer import Renderer, checked_renderer
from modelwright.core.models.adapters import adapter_base, load_engine
from modelwright.core.models.hf_folder import folder_context

log = logging.getLogger(__name__)


@define(eq=False, kw_only=True)
class LoadedModel:
    """A model that an engine has loaded.

    Attributes:
        version: the registry's record of it.
        spec: the engine's descriptor.
        engine: the engine, which runs only this model.
        renderer: from text and conversations to tokens.
        context_length: maximum number of tokens, prompt and answer together.
        loaded: the time at which it was loaded, in UTC.
        pinned: whether it is served by its name, so that it stays when no alias points to it.
        active: number of requests that hold it.
    """

    version: ModelVersion
    spec: EngineSpec
    engine: Engine
    renderer: Renderer
    context_length: int
    loaded: datetime = field(factory=lambda: datetime.now(UTC))
    pinned: bool = False
    active: int = 0

    @property
    def address(self) -> str:
        """`NAME@VERSION`."""
        return self.version.address

    async def warm(self) -> None:
        """Generate one token, so that the first request does not wait for one-time setup.

        Raises:
            ModelwrightError: the engine failed.
        """
        # Token 0 is in every vocabulary.
        request = GenerationRequest(id="warm", prompt=(0,), sampling=Sampling(max_tokens=1))
        finish = None
        try:
            async for delta in self.engine.submit(request):
                finish = delta.finish or finish
        except Exception as error:
            raise ModelwrightError(
                f"{self.address} was loaded, but a test generation failed: {type(error).__name__}: {error}"
            ) from error
        if finish not in ("stop", "length"):
            raise ModelwrightError(f"{self.address} was loaded, but a test generation ended with {finish}")

    def close(self) -> None:
        """Free the engine, which may take long."""
        try:
            self.engine.close()
        except Exception:
            # Nothing uses it any more, and the process's end frees the rest.
            log.exception("the engine of %s did not close", self.address)


@frozen(kw_only=True)
class Route:
    """This server's copy of an alias. `generation` counts its moves, starting from the registry's count."""

    alias: str
    model: LoadedModel
    generation: int

    @property
    def etag(self) -> str:
        """A mark that changes with every move."""
        return f"{self.generation}-{self.model.version.digest[:16]}"


def load_model(registry: Registry, version: ModelVersion, spec: EngineSpec) -> LoadedModel:
    """Load a registered model, which takes long.

    Raises:
        ModelwrightError: its files are not available, or do not fit together.
        MissingDependencyError: the engine needs a package that is not installed.
    """
    folder = registry.folder(version)
    limit = folder_context(folder)
    if limit is None:
        raise ModelwrightError(
            f"{version.address} cannot be served: its config.json does not give its context length "
            f"(expected {' or '.join(CONTEXT_KEYS)})"
        )
    renderer = checked_renderer(folder)
    base = adapter_base(registry, version)
    engine: Engine = spec.create()
    try:
        load_engine(engine, spec, folder, None if base is None else base.folder)
    except Exception as error:
        engine.close()
        if _interrupted(error):
            raise KeyboardInterrupt from error
        if isinstance(error, MissingDependencyError):
            raise
        text = str(error) if isinstance(error, ModelwrightError) else f"{type(error).__name__}: {error}"
        raise ModelwrightError(f"{version.address} cannot be loaded by engine {spec.name!r}: {text}") from error
    return LoadedModel(version=version, spec=spec, engine=engine, renderer=renderer, context_length=limit)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an error: Python wraps a KeyboardInterrupt that comes while a class is being created."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
