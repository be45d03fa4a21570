"""What a training begins from: a folder, or a registered model."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import digest_json
from modelwright.core.registry import resolve
from modelwright.core.stage import Run

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


def find_base(run: Run) -> Base | None:
    """The base of a run; None where the model is made from scratch.

    Raises:
        UsageError: it is neither a folder with a config.json nor a registry address.
        ModelNotFoundError: the registry has no such model.
    """
    source = run.config.model.base
    if source is None:
        return None
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
    model = resolve(run.registry, source)
    return Base(folder=run.registry.folder(model), digest=model.digest, parent=model.address)
