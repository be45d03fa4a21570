"""Exporting a registered model for the tools that people use; each of them is a target.

A target is an object with a name that writes a model's folder to a new place. Before any of them writes, the model is
prepared: its weights in the dtype that is wanted, and a generation config that lists every token that ends a turn. If
that changes nothing, the registry's own files are exported.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from attrs import evolve, frozen

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import RegistryError, UsageError
from modelwright.core.api.files import absolute, writing_folder
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import ModelVersion, model_digest, scan_model
from modelwright.core.chat.renderer import Renderer
from modelwright.core.models.finishing import (
    GENERATION_CONFIG,
    complete_generation_config,
    missing_stops,
    round_weights,
    weights_dtype,
)
from modelwright.core.models.gguf_export import write_gguf
from modelwright.core.models.ollama import write_modelfile
from modelwright.core.registry.export import ARCHIVES, export_model, refuse_taken
from modelwright.core.registry.importing import gathering

Note = Callable[[str], None]
# Called with the model's folder and what was made of it; raises if they do not answer the same.
Verify = Callable[[Path, Path], None]


@frozen(kw_only=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        dtype: of the weights, one of `DTYPES`; None for that of the registered model, which is its base's.
        quantize: one of `QUANTIZATIONS`, for GGUF.
        llama_cpp: the folder of a llama.cpp, for GGUF.
    """

    dtype: str | None = None
    quantize: str | None = None
    llama_cpp: Path | None = None


class Target(Protocol):
    """A tool for which models are exported."""

    name: str
    is_folder: bool

    def write(
        self, folder: Path, out: Path, version: ModelVersion, options: ExportOptions, note: Note, verify: Verify
    ) -> None:
        """Write a model.

        Args:
            folder: the prepared model in Hugging Face layout: never an adapter.
            out: a path where nothing is; appears whole or not at all.
            version: what the registry knows of it.
            options: how.
            note: receives a sentence for the user about what the target cannot express.
            verify: called with `folder` and the complete weights before anything appears at `out`.

        Raises:
            ModelwrightError: it cannot be written.
        """
        ...


class Gguf:
    """One GGUF file, for llama.cpp and what is built on it."""

    name = "gguf"
    is_folder = False

    def write(
        self,
        folder: Path,
        out: Path,
        version: ModelVersion,
        options: ExportOptions,
        note: Note,  # noqa: ARG002
        verify: Verify,
    ) -> None:
        """See `Target`."""
        if out.suffix != ".gguf":
            raise UsageError(f"{out}: the name of a GGUF file ends in .gguf")
        _write_gguf(folder, out, version, options, verify)


class Ollama:
    """A folder with the GGUF and a Modelfile, for `ollama create NAME -f FOLDER/Modelfile`."""

    name = "ollama"
    is_folder = True

    def write(
        self, folder: Path, out: Path, version: ModelVersion, options: ExportOptions, note: Note, verify: Verify
    ) -> None:
        """See `Target`."""
        with writing_folder(out) as temporary:
            write_modelfile(folder, temporary / "Modelfile", "model.gguf", version.address, note)
            _write_gguf(folder, temporary / "model.gguf", version, options, verify)


def _write_gguf(folder: Path, out: Path, version: ModelVersion, options: ExportOptions, verify: Verify) -> None:
    write_gguf(
        folder,
        out,
        name=version.address,
        quantize=options.quantize,
        llama_cpp=options.llama_cpp,
        check=lambda made: verify(folder, made),
    )


TARGETS: Mapping[str, Target] = {target.name: target for target in (Gguf(), Ollama())}


def export(
    registry: Registry,
    version: ModelVersion,
    destination: Path,
    *,
    to: str | None = None,
    options: ExportOptions,
    advance: Callable[[int], None],
    note: Note,
    verify: Verify = lambda _folder, _made: None,
) -> None:
    """Export a model; nothing is at the destination unless all of it is written.

    Args:
        registry: where the model is.
        version: the model.
        destination: a path that does not exist yet, or an empty folder.
        to: one of `TARGETS`; None for a folder or archive in Hugging Face layout, with the record that an import reads.
        options: how.
        advance: called with the number of bytes written since the last call, if `to` is None.
        note: receives sentences for the user.
        verify: called with the prepared model and the complete export, before anything appears at the destination.

    Raises:
        UsageError: the destination exists, an option does not fit, or the target cannot express the model.
        RegistryError: the model is damaged, or cannot be written.
        ModelwrightError: a program that was needed failed.
    """
    destination = absolute(destination)
    if to is None:
        if options.quantize or options.llama_cpp:
            raise UsageError("--quantize and --llama-cpp are for --to gguf and --to ollama")
        refuse_taken(destination, folder=not destination.name.endswith(ARCHIVES))
        with prepared(registry, version, options.dtype, note) as (changed, folder):
            export_model(
                registry, changed, destination, advance, folder=folder, check=lambda made: verify(folder, made)
            )
        return
    target = TARGETS[to]
    if version.is_adapter:
        raise UsageError(
            f"{version.address} is an adapter, and --to {to} needs a whole model: merge it first (modelwright models "
            f"merge {version.address})"
        )
    refuse_taken(destination, folder=target.is_folder)
    _check_whole(registry, version)
    with prepared(registry, version, options.dtype, note) as (changed, folder):
        try:
            target.write(folder, destination, changed, options, note, verify)
        except OSError as error:
            raise RegistryError(
                f"{version.address} cannot be exported to {destination}: {error.strerror or error}"
            ) from error


@contextlib.contextmanager
def prepared(
    registry: Registry, version: ModelVersion, dtype: str | None, note: Note
) -> Iterator[tuple[ModelVersion, Path]]:
    """A model as it is exported, and its folder: the registry's own, or a changed copy that is removed afterwards.

    A changed copy has a digest and a fingerprint of its own, so that an import does not take it for the registered one.

    Raises:
        UsageError: a weight is too large for the dtype.
        RegistryError: the model is damaged.
    """
    folder = registry.folder(version)
    is_other = dtype is not None and weights_dtype(folder) != dtype
    stops = _missing(folder) if not version.is_adapter else frozenset[int]()
    if not is_other and not stops:
        yield version, folder
        return
    _check_whole(registry, version)
    with gathering() as copy:
        for file in version.files:
            (copy / file.path).parent.mkdir(parents=True, exist_ok=True)
            _link(folder / file.path, copy / file.path)
        if dtype is not None and is_other:
            round_weights(copy, dtype)
            note(f"its weights are rounded to {dtype}; registered are those in {weights_dtype(folder)}")
        if stops:
            complete_generation_config(copy, stops)
            listed = ", ".join(Renderer.from_folder(folder).spell([each]) for each in sorted(stops))
            note(f"its {GENERATION_CONFIG} did not list every token that ends a turn: added {listed}")
        files = scan_model(copy)
        digest = model_digest(files)
        fingerprint = digest_json({"exported": [version.model.fingerprint, digest]})
        yield evolve(version, files=files, digest=digest, model=evolve(version.model, fingerprint=fingerprint)), copy


def _missing(folder: Path) -> frozenset[int]:
    if not (folder / "tokenizer.json").is_file():
        return frozenset()
    return missing_stops(folder, Renderer.from_folder(folder).stop_token_ids)


def _check_whole(registry: Registry, version: ModelVersion) -> None:
    for problem in registry.verify(version):
        raise RegistryError(
            f"{version.address} cannot be exported: it is damaged in the registry: {problem}: run modelwright models "
            f"verify {version.address}"
        )


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source.resolve(), place)
    except OSError:  # another file system
        shutil.copyfile(source, place)
