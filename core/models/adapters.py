"""Registered adapters: finding an adapter's base, loading both into an engine, and importing what peft wrote.

An adapter's version records its base: a version in the registry, a commit on the hub, or a folder, each with the digest
of its files. The base that is found must have this digest: on another base an adapter computes nonsense.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from modelwright.core.api.components import AdapterEngine, Engine, EngineSpec, Registry
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError, UsageError
from modelwright.core.api.files import failing_as, read_json, working_directory, write_json
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, CONFIG, is_adapter, vocabulary_size
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import ModelVersion
from modelwright.core.api.wording import one_line
from modelwright.core.chat.renderer import MODEL_RECORD, Renderer, checked_renderer
from modelwright.core.config.errors import Invalid
from modelwright.core.config.paths import Written, model_source
from modelwright.core.extras import require
from modelwright.core.models.base import BASE_FILES, Base, local_base, path_digest, resolve_base
from modelwright.core.models.hf_folder import BadFolderError, read_object, token_count
from modelwright.core.models.hub import fetch
from modelwright.core.registry import resolve
from modelwright.core.registry.importing import Origin, dequantized_fingerprint, link_files
from modelwright.core.registry.record import RECORD


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


# Importing what peft wrote


def is_bare_adapter(source: Path) -> bool:
    """Whether a folder is an adapter as peft writes it, without a record that names its base."""
    if not os.path.isdir(source):  # noqa: PTH112 - false also for a name that no disk can have
        return False
    with failing_as(f"{source} cannot be read"):
        names = {path.name for path in source.iterdir()}
    return is_adapter(names) and RECORD not in names


@frozen(kw_only=True)
class BareAdapter:
    """An adapter that peft wrote, and the base that it is imported for.

    Attributes:
        source: its folder.
        base: the base.
        place: the base's path; None if it is registered or on the hub.
    """

    source: Path
    base: Base
    place: Path | None

    @classmethod
    def find(cls, source: Path, given: str | None, registry: Registry) -> BareAdapter:
        """Find its base.

        Args:
            source: its folder.
            given: an address, a path or a model of the hub; None for what its config names, a path or a hub's model.
            registry: may have the base.

        Raises:
            UsageError: there is no such base, or the config does not say which.
            ModelwrightError: the hub cannot be reached.
        """
        name, where = (given, "--base") if given is not None else (_named_base(source), f"its {_NAMED}")
        try:
            found = model_source(Written.mark(name, working_directory()))
            base = resolve_base(found, lambda: registry)
        except Invalid as error:
            raise UsageError(f"{source} cannot be imported: {where} {error.findings[0][1]}") from error
        except ModelwrightError as error:
            kind = UsageError if isinstance(error, UsageError | ModelNotFoundError) else ModelwrightError
            said = str(error).replace("[model] base", where)
            advice = "" if given is not None else "; or name the base with --base"
            raise kind(f"{source} cannot be imported: {said}{advice}") from error
        return cls(source=source, base=base, place=None if base.parent else Path(found))

    @property
    def origin(self) -> Origin:
        """What the registry records of it."""
        return Origin(base=self.base.digest, parent=self.base.parent, place=self.place)

    def complete(self, folder: Path, _source: Path) -> None:
        """Add what peft does not write: the base's config, its tokenizer if there is none, and our record.

        Args:
            folder: has the files of the adapter, and gets the others.

        Raises:
            ModelwrightError: it is not an adapter of this base, or of a kind that is not supported.
        """
        base = self.base.folder
        try:
            if not (folder / CONFIG).exists():
                link_files({CONFIG: (base / CONFIG).resolve()}, folder)
            if not (folder / "tokenizer.json").exists():
                Renderer.from_folder(base).save(folder)
            renderer = checked_renderer(folder)
            self._check_tokens(folder)
            self._check_fits(folder)
        except ModelwrightError as error:
            said = str(error).replace(str(folder), str(self.source))
            raise type(error)(f"{self.source} cannot be imported: {said.removeprefix(f'{self.source}: ')}") from error
        origin = {"address": self.base.parent, "digest": self.base.digest}
        write_json(folder / MODEL_RECORD, {"renderer": renderer.fingerprint, "base": origin})

    @staticmethod
    def _check_tokens(folder: Path) -> None:
        """Refuse tokens without embeddings: their rows were made where it was trained, and are in none of its files."""
        tokens, rows = token_count(folder), vocabulary_size(read_json(folder / CONFIG))
        if rows is not None and tokens > rows:
            raise UsageError(
                f"its tokenizer has {tokens} tokens and its base embeddings for {rows}: merge it into its base with "
                "peft, and import the result"
            )

    def _check_fits(self, folder: Path) -> None:
        """Apply it to a base that has shapes and no weights."""
        from modelwright.core.api.adapters import apply_adapter

        torch, transformers = require("torch"), require("transformers")
        require("peft")
        with quietly():
            try:
                with torch.device("meta"):
                    config = transformers.AutoConfig.from_pretrained(self.base.folder, trust_remote_code=False)
                    model = transformers.AutoModelForCausalLM.from_config(config)
            except (OSError, RuntimeError, ValueError) as error:
                raise ModelwrightError(f"its base cannot be built: {one_line(error):.300}") from error
            apply_adapter(model, folder)


_NAMED = f"base_model_name_or_path in {ADAPTER_CONFIG}"


def _named_base(source: Path) -> str:
    """What an adapter's config says of its base: a path, or a model of the hub with its revision."""
    try:
        config = read_object(source / ADAPTER_CONFIG)
    except BadFolderError as error:
        raise UsageError(f"{source} cannot be imported: {error}") from error
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    # A bare name could be a registered model's, but peft meant another one.
    if not isinstance(name, str) or "/" not in name:
        raise UsageError(
            f"{source} cannot be imported: {ADAPTER_CONFIG} does not say which base it belongs to "
            f"(base_model_name_or_path is {name!r:.100}): name the base with --base ADDRESS, a path or ORG/NAME"
        )
    return f"{name}@{revision}" if revision and not Path(name).exists() else name


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the libraries' messages, and keep them off standard output, which belongs to the command."""
    bars = require("transformers.utils.logging")
    before, shown = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if shown:
            bars.enable_progress_bar()
