"""What a training begins from: a folder, or a registered model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import digest_json
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
        parent: `NAME@VERSION` of the registered model that is continued.
    """

    folder: Path
    digest: str
    parent: str | None = None


def find_base(source: str, registry: Callable[[], Registry], run: RunFolder) -> Base:
    """The base that `[model] base` names.

    A registry address is resolved once for a run: an alias that moves later, perhaps by this very run's promotion,
    does not change what the run began from. `pin_base` keeps it.

    Raises:
        UsageError: it is neither a folder with a config.json nor a registry address.
        ModelNotFoundError: the registry has no such model.
    """
    folder = Path(source)
    if folder.is_absolute():
        if not (folder / "config.json").is_file():
            raise UsageError(f"[model] base {folder}: expected a folder in Hugging Face layout, with a config.json")
        manifest = {path.name: files.sha256_file(path) for pattern in PARTS for path in sorted(folder.glob(pattern))}
        return Base(folder=folder, digest=digest_json(manifest))
    if "/" in source:
        raise UsageError(
            f"[model] base {source!r}: hub ids are not supported by this version: download it and give the folder "
            f"(./{source} if it is beside the run.toml)"
        )
    pinned = files.read_json(_pin(run))
    known = pinned is not None and pinned["source"] == source
    model = resolve(registry(), pinned["address"] if known else source)
    return Base(folder=registry().folder(model), digest=model.digest, parent=model.address)


def pin_base(source: str, base: Base, run: RunFolder) -> None:
    """Remember which version a registry address stood for when the run began."""
    if base.parent is not None:
        files.write_json(_pin(run), {"source": source, "address": base.parent})


def forget_base(run: RunFolder) -> None:
    """Resolve the address anew next time."""
    _pin(run).unlink(missing_ok=True)


def _pin(run: RunFolder) -> Path:
    return run.path / "base.json"
