"""What `[model] base` stood for when a run began, kept in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.models.base import Base, resolve_base
from modelwright.core.models.hf_folder import check_base_folder
from modelwright.core.runs.folder import RunFolder


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
    remedy = "remove it, and the base is looked up anew"
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
    """Resolve the address anew next time."""
    _pin(run).unlink(missing_ok=True)


def _pin(run: RunFolder) -> Path:
    return run.path / "base.json"
