"""What a training begins from: a folder, a registered model, or one of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import digest_json
from modelwright.core.models.hf_folder import check_base_folder
from modelwright.core.models.hub import fetch
from modelwright.core.registry import resolve

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


def resolve_base(source: str, registry: Callable[[], Registry]) -> Base:
    """The base that `[model] base` names, checked; a hub model is downloaded if it is not in the hub's cache.

    Raises:
        UsageError: it is neither a folder in Hugging Face layout nor a registry address or hub id; or a file in it is
            missing or wrong (several lines: `SeveralErrors`).
        ModelNotFoundError: the registry has no such model.
        ModelwrightError: the hub cannot be reached.
    """
    if Path(source).is_absolute():
        return _in_folder(Path(source), source)
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
