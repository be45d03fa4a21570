"""What a run is and what a stage is; what `[model] base` was when the run began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.config.schema import RunConfig
from modelwright.core.models.base import Base, resolve_base
from modelwright.core.models.hf_folder import check_base_folder
from modelwright.core.plugins import Plugins
from modelwright.core.registry import naming, open_registry
from modelwright.core.runs.events import Event
from modelwright.core.runs.folder import RunFolder

if TYPE_CHECKING:
    from modelwright.core.api.components import Registry


def find_base(source: str, registry: Callable[[], Registry], run: RunFolder) -> Base:
    """The base that `[model] base` names, or what it stood for when the run began.

    A registry address and a hub id are resolved once for a run: an alias that moves later, perhaps by this very run's
    promotion, or a branch that grows, does not change what the run began from. `pin_base` keeps it, and where a
    registered model lies, so that a training on a cluster never asks the registry's database.

    Raises:
        UsageError, ModelNotFoundError, ModelwrightError: as `resolve_base`.
    """
    if Path(source).is_absolute():
        return resolve_base(source, registry)
    remedy = "remove it, and the base is looked up again"
    pinned = files.read_state(_pin(run), {"source": str, "address": str}, remedy=remedy)
    if pinned is None or pinned["source"] != source:
        return resolve_base(source, registry)
    if pinned.get("digest") and Path(pinned["folder"]).is_dir():
        check_base_folder(Path(pinned["folder"]), pinned["address"])
        return Base(folder=Path(pinned["folder"]), digest=pinned["digest"], parent=pinned["address"])
    return resolve_base(pinned["address"], registry)


def pin_base(source: str, base: Base, run: RunFolder) -> None:
    """Remember which version a registry address, or which commit a hub id, stood for when the run began."""
    if base.parent is None:
        return
    pinned = {"source": source, "address": base.parent}
    if "/" not in base.parent:  # the hub's cache is the hub's
        pinned |= {"folder": str(base.folder), "digest": base.digest}
    files.write_json(_pin(run), pinned)


def forget_base(run: RunFolder) -> None:
    """Resolve the address again next time."""
    _pin(run).unlink(missing_ok=True)


def _pin(run: RunFolder) -> Path:
    return run.path / "base.json"


Listener = Callable[[Event], None]


@define(slots=False)
class Run:
    """A run at work: what every stage is given.

    Attributes:
        config: the resolved configuration.
        folder: where the run lives.
        plugins: the plugins that the configuration admits.
        registry_url: where models are registered.
        workers_lock: the descriptor that worker processes inherit; None while nothing may be written (planning).
        listener: hears every event.
        fresh: whether nothing that was made before is used.
        merging: whether all rows must have been read before, by jobs that each did a part of them.
        gather: waits for the other processes of a launcher that started this program several times, and lets them start
            theirs of a training; it tells its argument whom it waits for. None where there are no others.
    """

    config: RunConfig
    folder: RunFolder
    plugins: Plugins
    registry_url: str
    workers_lock: int | None = None
    listener: Listener | None = None
    fresh: bool = False
    merging: bool = False
    gather: Callable[[Callable[[str], None]], None] | None = None

    @cached_property
    def registry(self) -> Registry:
        """The registry, opened on first use."""
        return open_registry(self.registry_url, self.plugins)

    @cached_property
    def base(self) -> Base | None:
        """What the training begins from; None where the model is made from scratch."""
        source = self.config.model.base
        if source is None:
            return None
        with naming(self.registry_url):
            return find_base(source, lambda: self.registry, self.folder)

    def has(self, stage: str) -> bool:
        """Whether the run has a stage; one with `train = false` neither prepares data nor trains."""
        return bool(self.config.train) or stage not in ("prepare", "train")

    @property
    def writing(self) -> int:
        """The workers' lock; asking for it without holding it is a mistake in this program."""
        assert self.workers_lock is not None
        return self.workers_lock

    def outputs(self, stage: str) -> Mapping[str, Any]:
        """What a finished stage gave to those after it."""
        done = self.folder.done(stage)
        assert done is not None, f"outputs of {stage} were requested before it is done"
        return done.outputs


class Stage(Protocol):
    """One step of a run."""

    name: str

    def inputs(self, run: Run) -> dict[str, Any]:
        """All that the stage's result depends on, as JSON values; read only when the stages before it are done."""
        ...

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:
        """What of a finished stage's results is gone or another, as a clause; None where all is there.

        Looks at names and sizes only: it is called at every run.
        """
        ...

    def unfinished(self, run: Run, fingerprint: str) -> str | None:
        """Where an interrupted stage would resume, in words; None where it begins from nothing."""
        ...

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:
        """Do the stage and return its outputs.

        Raises:
            StopRequested: someone asked the run to stop.
            ModelwrightError: it failed.
        """
        ...
