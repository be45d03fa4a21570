"""The five descriptors that plugins give, and what their factories make.

A descriptor is light: it is imported whenever plugins are listed, so its options class must not import torch. The
factory is named by a string and imported when the component is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from attrs import field, fields, frozen, has, validators

from modelwright.core.api.errors import MissingDependencyError, ModelwrightError
from modelwright.core.api.generation import Delta, GenerationRequest
from modelwright.core.api.records import Example, Figure, Output, Score
from modelwright.core.api.registry import Alias, Collected, ModelVersion, NewModel, RegistryEvent
from modelwright.core.api.training import Job, Trained

API_VERSION = 1
COMPONENT_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@frozen
class NoOptions:
    """The options of a component that has none."""


def _options_class(_instance: Any, _attribute: Any, value: Any) -> None:
    if not (isinstance(value, type) and has(value)):
        msg = f"options must be an attrs class, not {value!r}"
        raise TypeError(msg)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _name_set(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


@frozen(kw_only=True)
class ComponentSpec:
    """The fields of every descriptor.

    Attributes:
        name: its name in run files, `[a-z][a-z0-9_-]*`.
        summary: one line for `modelwright plugins list`.
        options: an attrs class; options in run files are checked against it.
        factory: `"package.module:callable"`, imported on first use and called with the options.
        needs: what to install with pip if the factory's import fails.
        api: version of this contract that the plugin was written for.
    """

    kind: ClassVar[str]

    name: str = field(validator=validators.matches_re(COMPONENT_NAME, func=re.fullmatch))
    summary: str = field(validator=validators.instance_of(str))
    options: type[Any] = field(default=NoOptions, validator=_options_class)
    factory: str = field(validator=validators.matches_re(r"[\w.]+:[\w.]+", func=re.fullmatch))
    needs: str = ""
    api: int = API_VERSION

    def check(self) -> None:
        """Check that the factory's module exists, without importing it.

        Raises:
            MissingDependencyError: it does not, or a package above it cannot be imported.
        """
        module_name = self.factory.partition(":")[0]
        try:
            found = importlib.util.find_spec(module_name) is not None
        except ImportError as error:
            raise self._not_importable(error) from error
        if not found:
            raise self._not_importable(f"there is no module {module_name!r}")

    def _not_importable(self, reason: object) -> MissingDependencyError:
        hint = f"; install it: pip install '{self.needs}'" if self.needs else ""
        return MissingDependencyError(f"{self.kind} {self.name!r} cannot be imported: {reason}{hint}")

    def create(self, options: Any = None) -> Any:
        """Import the factory and call it with `options` (default: the options class without arguments).

        Raises:
            MissingDependencyError: the factory's module needs a package that is not installed.
            ModelwrightError: the factory does not exist.
        """
        module_name, _, path = self.factory.partition(":")
        try:
            target: Any = importlib.import_module(module_name)
        except ImportError as error:
            raise self._not_importable(error) from error
        try:
            for part in path.split("."):
                target = getattr(target, part)
        except AttributeError as error:
            msg = f"{self.kind} {self.name!r}: its factory {self.factory!r} does not exist"
            raise ModelwrightError(msg) from error
        return target(self.options() if options is None else options)


@runtime_checkable
class Format(Protocol):
    """Turns raw rows into examples.

    A format may also have `detect(row) -> str`: one short line that says what `read` takes a row with these columns
    for, such as `GSM8K: question, answer` or `columns as mapped: question ← Q, answer ← A`. It goes by the columns
    and what kind of value they hold, and raises `RowError` where `read` would find nothing to read, with the columns
    that the row has and those that were expected. Preparing asks once for each set of columns and reports how many rows
    were read as what; rows of a format without it are reported as "rows read by NAME".
    """

    def read(self, row: Mapping[str, Any]) -> Iterable[Example]:
        """The examples of one row; raises `RowError(reason)` for a row that it cannot read."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Grades what a model wrote."""

    def score(self, example: Example, outputs: Sequence[Output]) -> Score:
        """Grade the outputs (one or more samples) of one example."""
        ...

    def aggregate(self, scores: Sequence[Score]) -> Figure:
        """The figure of a whole suite."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """Trains a model, in processes of its own."""

    def train(self, job: Job) -> Trained:
        """Train until the job is done or `job.stopping()`; resume from a checkpoint in `job.folder` if there is one."""
        ...


@runtime_checkable
class Registry(Protocol):
    """Keeps models. Methods that take a model's name raise `ModelNotFoundError` if there is no such model."""

    def add(self, model: NewModel, folder: Path) -> ModelVersion:
        """Store the files of `folder`, then the row, in one transaction; idempotent for (name, fingerprint).

        Tags that were changed since do not make it another model.
        """
        ...

    def get(self, name: str, version: int | None = None) -> ModelVersion:
        """One version, the newest by default."""
        ...

    def resolve(self, alias: str) -> Alias:
        """Where an alias points."""
        ...

    def find(self, name: str | None = None) -> Sequence[ModelVersion]:
        """Every version, of one name or of all; by name, then version."""
        ...

    def set_alias(self, alias: str, name: str, version: int, *, expected: int | None = None) -> Alias:
        """Point an alias; with `expected`, only if its generation is that (0: it does not exist yet).

        Raises:
            AliasConflictError: the alias has another generation.
        """
        ...

    def add_metrics(self, name: str, version: int, suite: str, metrics: Mapping[str, Figure]) -> None:
        """Record a suite's figures; a later recording of the same suite and metric replaces it."""
        ...

    def set_tags(self, name: str, version: int, tags: Mapping[str, str | None]) -> ModelVersion:
        """Set these tags and leave the others; None removes one. Returns the version with its new tags.

        Raises:
            UsageError: a key or a value cannot be a tag's (see `check_tags`).
        """
        ...

    def delete(self, name: str, version: int) -> None:
        """Delete a version; refused while an alias points to it. Its number is never used again."""
        ...

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Free the contents that no version uses; safe during a concurrent `add`. With `dry_run`, only count them."""
        ...

    def verify(self, model: ModelVersion) -> Sequence[str]:
        """Read every file of a version again; returns a line for each that is missing, truncated or changed."""
        ...

    def events(self) -> Sequence[RegistryEvent]:
        """The history, oldest first."""
        ...

    def folder(self, model: ModelVersion) -> Path:
        """A local folder with the model's files, for reading only."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Runs one model."""

    def load(self, folder: Path) -> None:
        """Load a model folder in Hugging Face layout. Called once, before anything else; may take long."""
        ...

    def submit(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Run a request beside all others; the last delta has `finish`. Closing the iterator cancels the request."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request early: its stream ends with finish "cancelled". An unknown id is ignored."""
        ...

    def close(self) -> None:
        """Free all resources; running requests end as cancelled."""
        ...


@runtime_checkable
class AdapterEngine(Engine, Protocol):
    """An engine that runs adapters as well."""

    def load(self, folder: Path, *, base: Path | None = None) -> None:
        """As `Engine.load`; with `base`, `folder` holds an adapter of the model in `base`."""
        ...


@frozen(kw_only=True)
class FormatSpec(ComponentSpec):
    """A data format; its factory makes a `Format`."""

    kind: ClassVar[str] = "format"


@frozen(kw_only=True)
class TrainerSpec(ComponentSpec):
    """A trainer; its factory makes a `Trainer`.

    Attributes:
        launcher: program that starts its processes, "python" or "deepspeed".
        adapters: whether it trains adapters (`Job.adapter`); if not, a run with `[adapter]` is refused.
        shapes: a function, as "package.module:function", from which `doctor --device` has the sizes of a model; it is
            called in a process of its own as `function(folder=…, adapter=…, vocabulary=…, trust_remote_code=…)` and
            returns the attributes of `ModelShape` for all weights ("full") and for an adapter ("adapter"). None: there
            is no table.
    """

    kind: ClassVar[str] = "trainer"
    launcher: Literal["python", "deepspeed"] = field(
        default="python", validator=validators.in_(("python", "deepspeed"))
    )
    adapters: bool = False
    shapes: str | None = None


@frozen(kw_only=True)
class MetricSpec(ComponentSpec):
    """A metric; its factory makes a `Metric`.

    Attributes:
        higher_is_better: whether a higher value is better.
        inputs: what it grades: "text" or "logprobs".
    """

    kind: ClassVar[str] = "metric"
    higher_is_better: bool = True
    inputs: Literal["text", "logprobs"] = field(default="text", validator=validators.in_(("text", "logprobs")))

    def __attrs_post_init__(self) -> None:
        """Run files write options beside the metric's name, so none of them can be called that."""
        if any(one.metadata.get("key", one.alias) == "name" for one in fields(self.options)):
            msg = f"the options of metric {self.name!r} have a field 'name', which run files use for the metric's name"
            raise TypeError(msg)


@frozen(kw_only=True)
class RegistrySpec(ComponentSpec):
    """A registry backend; its factory makes a `Registry` from options that have a field `url`.

    Attributes:
        schemes: the URL schemes that it serves, such as "sqlite".
    """

    kind: ClassVar[str] = "registry"
    schemes: tuple[str, ...] = field(converter=_names, validator=validators.min_len(1))


@frozen(kw_only=True)
class EngineSpec(ComponentSpec):
    """An engine; its factory makes an `Engine`.

    Attributes:
        abilities: what it supports beyond greedy decoding: any of "temperature", "top_p", "top_k", "stop", "seed",
            "logprobs". A request for anything else is refused, never ignored.
        adapters: whether its factory makes an `AdapterEngine`; if not, an adapter is refused.
    """

    kind: ClassVar[str] = "engine"
    abilities: frozenset[str] = field(converter=_name_set, default=frozenset())
    adapters: bool = False


SPECS: tuple[type[ComponentSpec], ...] = (FormatSpec, TrainerSpec, MetricSpec, RegistrySpec, EngineSpec)
