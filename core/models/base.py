"""The base of a training: a folder, a registered model, or a model of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import digest_json
from modelwright.core.models.gguf_base import dequantize, gguf_digest, is_gguf
from modelwright.core.models.hf_folder import check_base_folder
from modelwright.core.models.hub import fetch
from modelwright.core.registry import resolve

# The files that count towards a base's digest: not its README, nor pickled weights, which are never read.
BASE_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@frozen(kw_only=True)
class Base:
    """The model that a training starts from.

    Attributes:
        folder: in Hugging Face layout.
        digest: of the registered model, of the folder's files, or of the GGUF file.
        parent: its address: `NAME@VERSION` in the registry, or `org/name@COMMIT` on the hub; None for a path.
    """

    folder: Path
    digest: str
    parent: str | None = None


def resolve_base(source: str, registry: Callable[[], Registry]) -> Base:
    """Find and check the model of `[model] base`. A model of the hub is downloaded if it is not in the hub's cache.

    Raises:
        UsageError: the source is not a folder in Hugging Face layout, a GGUF file, a registry address or a hub id, or a
            file of it is missing or wrong (`SeveralErrors` for several problems).
        ModelNotFoundError: the registry has no such model.
        ModelwrightError: the hub cannot be reached.
    """
    if Path(source).is_absolute():
        return local_base(Path(source), source)
    if "/" in source:
        model = fetch(source, BASE_FILES)
        return _in_folder(model.folder, model.address, parent=model.address)
    registered = resolve(registry(), source)
    folder = registry().folder(registered)
    check_base_folder(folder, registered.address)
    return Base(folder=folder, digest=registered.digest, parent=registered.address)


def local_base(path: Path, source: str) -> Base:
    """The base at a path: a folder, or a GGUF file, which is dequantized if it is not in the cache.

    Raises:
        UsageError: as `resolve_base`.
    """
    if not is_gguf(path):
        return _in_folder(path, source)
    made = dequantize(path, f"[model] base {source}")
    check_base_folder(made.folder, source)
    return Base(folder=made.folder, digest=made.digest)


def path_digest(path: Path) -> str:
    """The digest of the base at a path, of which all bytes are read.

    Raises:
        OSError: a file cannot be read.
        UsageError: a GGUF is not one.
    """
    return gguf_digest(path, str(path)) if is_gguf(path) else folder_digest(path)


def _in_folder(folder: Path, source: str, *, parent: str | None = None) -> Base:
    check_base_folder(folder, source)
    try:
        return Base(folder=folder, digest=folder_digest(folder), parent=parent)
    except OSError as error:
        raise UsageError(f"[model] base {source}: {error.filename} cannot be read: {error.strerror}") from error


def base_files(folder: Path) -> Iterator[Path]:
    """The files of a base that count."""
    return (path for pattern in BASE_FILES for path in folder.glob(pattern))


def folder_digest(folder: Path) -> str:
    """The digest of a base's files, which are all read.

    Raises:
        OSError: a file cannot be read.
    """
    return digest_json({path.name: files.sha256_file(path) for path in base_files(folder)})
