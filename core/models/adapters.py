"""Registered adapters: finding an adapter's base, and loading both into an engine.

An adapter's version records its base: a version in the registry, a commit on the hub, or a folder, each with the digest
of its files. The base that is found must have this digest: on another base an adapter computes nonsense.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

from attrs import frozen

from modelwright.core.api.components import AdapterEngine, Engine, EngineSpec, Registry
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError, UsageError
from modelwright.core.api.files import failing_as
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import ModelVersion
from modelwright.core.models.base import BASE_FILES, local_base, path_digest
from modelwright.core.models.hub import fetch
from modelwright.core.registry import resolve
from modelwright.core.registry.importing import dequantized_fingerprint


@frozen(kw_only=True)
class AdapterBase:
    """The base of an adapter.

    Attributes:
        folder: in Hugging Face layout.
        version: the registered model; None for a folder or a model of the hub.
    """

    folder: Path
    version: ModelVersion | None = None


def adapter_base(registry: Registry, version: ModelVersion) -> AdapterBase | None:
    """Find the base that an adapter was trained on; None for a whole model.

    A base that was a folder is looked for in that place, then among the registered models. A registered base is looked
    for by its address, then by its digest, since another registry may have it under another name.

    Raises:
        ModelwrightError: the base is missing, or has another digest; the message has both digests.
    """
    if not version.is_adapter:
        return None
    parent, digest = version.model.parent, version.model.base
    if parent is not None and "/" in parent:
        folder = fetch(parent, BASE_FILES).folder
        _check_digest(version, folder, parent)
        return AdapterBase(folder=folder)
    registered = _registered(registry, digest, parent)
    folder = Path(str(_source(version)))
    if parent is None and folder.exists() and (registered is None or _digest(folder) == digest):
        _check_digest(version, folder, str(folder))
        return AdapterBase(folder=local_base(folder, str(folder)).folder)
    if registered is not None:
        return AdapterBase(folder=registry.folder(registered), version=registered)
    if parent is not None:
        raise _not_registered(registry, version, parent)
    raise ModelwrightError(
        f"the base of adapter {version.address} is missing: it was in {folder} (digest {digest}); copy it back, or "
        "register it (modelwright models import FOLDER --name NAME)"
    )


def _check_digest(version: ModelVersion, path: Path, where: str) -> None:
    there = _digest(path)
    if there != version.model.base:
        raise _other_base(version, there, where)


def base_name(version: ModelVersion) -> str:
    """The name of an adapter's base for people: its address, or the folder that it was in."""
    return version.model.parent or str(_source(version) or version.model.base)


def needed_by(registry: Registry, version: ModelVersion) -> list[ModelVersion]:
    """The registered adapters whose only base in this registry is this version."""
    models = registry.find()
    others = [model for model in models if model.address != version.address]
    return [
        model
        for model in others
        if model.is_adapter
        and _is_base(version, model.model.base)
        and not any(_is_base(other, model.model.base) for other in others)
    ]


def load_engine(engine: Engine, spec: EngineSpec, folder: Path, base: Path | None) -> None:
    """Load a model into an engine from its folder, and for an adapter also from its base's folder.

    Raises:
        UsageError: the engine cannot run adapters.
        ModelwrightError: as `Engine.load`.
    """
    if base is None:
        engine.load(folder)
        return
    if not spec.adapters:
        raise UsageError(
            f"engine {spec.name!r} cannot run adapters: merge this one into its base first "
            "(modelwright models merge ADDRESS)"
        )
    assert isinstance(engine, AdapterEngine)
    engine.load(folder, base=base)


def _source(version: ModelVersion) -> str | None:
    model = version.model.config.get("model")
    source = model.get("base") if isinstance(model, dict) else None
    return source if isinstance(source, str) else None


def _registered(registry: Registry, digest: str, parent: str | None) -> ModelVersion | None:
    """The version with the digest, preferably the one at the address."""
    found = [model for model in registry.find() if _is_base(model, digest)]
    return next((model for model in found if model.address == parent), found[0] if found else None)


def _is_base(model: ModelVersion, digest: str) -> bool:
    """Whether a version has the digest: as a registered model, or as the folder or GGUF that it was imported from."""
    if model.is_adapter:
        return False
    if model.model.fingerprint == dequantized_fingerprint(digest):
        return True
    parts = {
        file.path: file.sha256
        for file in model.files
        if "/" not in file.path and any(fnmatch.fnmatchcase(file.path, pattern) for pattern in BASE_FILES)
    }
    return digest in (model.digest, digest_json(parts))


def _not_registered(registry: Registry, version: ModelVersion, parent: str) -> ModelwrightError:
    try:
        there = resolve(registry, parent)
    except ModelNotFoundError:
        return ModelwrightError(
            f"the base of adapter {version.address} is not in this registry: export {parent} "
            f"(digest {version.model.base}) from its own registry (modelwright models export) and import it here"
        )
    return _other_base(version, there.digest, parent)


def _digest(folder: Path) -> str:
    with failing_as(f"{folder} cannot be read"):
        return path_digest(folder)


def _other_base(version: ModelVersion, found: str, where: str) -> ModelwrightError:
    return ModelwrightError(
        f"{version.address} is an adapter for another base: it was trained on the digest {version.model.base}, but "
        f"{where} has {found}; restore the original base, or train the adapter again"
    )
