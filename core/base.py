"""What a training begins from: a folder, a registered model, or one of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import digest_json
from modelwright.core.base_folder import check_base_folder
from modelwright.core.hub import fetch
from modelwright.core.registry import resolve
from modelwright.core.workspace import RunFolder

# What of a base folder takes part: not its README, nor pickled weights, which are never read.
PARTS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@frozen(kw_only=True)
class Base:
    """Where a training begins.

    Attributes:
        folder: in Hugging Face layout.
        digest: of the registered model, or of the folder's files.
        parent: what is continued: `NAME@VERSION` of the registry, or `org/name@COMMIT` of the hub.
    """

    folder: Path
    digest: str
    parent: str | None = None


def find_base(source: str, registry: Callable[[], Registry], run: RunFolder) -> Base:
    """The base that `[model] base` names, checked; one of the hub is downloaded if it is not in its cache.

    A registry address and a hub id are resolved once for a run: an alias that moves later, perhaps by this very run's
    promotion, or a branch that grows, does not change what the run began from. `pin_base` keeps it, and where a
    registered model lies, so that a training on a cluster never asks the registry's database.

    Raises:
        UsageError: it is neither a folder in Hugging Face layout nor a registry address or hub id; or a file in it is
            missing or wrong (several lines: `SeveralErrors`).
        ModelNotFoundError: the registry has no such model.
        ModelwrightError: the hub cannot be reached.
    """
    if Path(source).is_absolute():
        return _in_folder(Path(source), source)
    remedy = "remove it, and the base is looked up anew"
    pinned = files.read_state(_pin(run), {"source": str, "address": str}, remedy=remedy)
    if pinned is not None and pinned["source"] == source:
        source = pinned["address"]
        if pinned.get("digest") and Path(pinned["folder"]).is_dir():
            check_base_folder(Path(pinned["folder"]), source)
            return Base(folder=Path(pinned["folder"]), digest=pinned["digest"], parent=source)
    if "/" in source:
        model = fetch(source, PARTS)
        return _in_folder(model.folder, model.address, parent=model.address)
    registered = resolve(registry(), source)
    folder = registry().folder(registered)
    check_base_folder(folder, registered.address)
    return Base(folder=folder, digest=registered.digest, parent=registered.address)


def _in_folder(folder: Path, source: str, *, parent: str | None = None) -> Base:
    check_base_folder(folder, source)
    try:
        return Base(folder=folder, digest=folder_digest(folder), parent=parent)
    except OSError as error:
        raise UsageError(f"[model] base {source}: {error.filename} cannot be read: {error.strerror}") from error


def folder_digest(folder: Path) -> str:
    """The digest of a base's files; reads all of them.

    Raises:
        OSError: one cannot be read.
    """
    paths = (path for pattern in PARTS for path in folder.glob(pattern))
    return digest_json({path.name: files.sha256_file(path) for path in paths})


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
