"""Import of a model into the registry: an exported folder or archive, or any folder in Hugging Face layout.

The files are first gathered in a folder of the home's cache, by hard links where the file system allows it, so that
exactly the files that were checked are registered.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from attrs import evolve, frozen

from modelwright.core import home
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import RegistryError, UsageError
from modelwright.core.api.files import TEMPORARY, absolute
from modelwright.core.api.hf_folder import PICKLED_SUFFIXES
from modelwright.core.api.records import digest_json
from modelwright.core.api.registry import ModelVersion, NewModel, model_digest, scan_model
from modelwright.core.registry.archive import find_record, unpack
from modelwright.core.registry.export import README
from modelwright.core.registry.record import LONGEST, RECORD, read_record

_PREFIX = f"{TEMPORARY}import-"
# Gathered files are used at once; older ones were left by an import that was killed.
_ABANDONED_AFTER = 24 * 3600.0


@frozen(kw_only=True)
class Imported:
    """The result of an import.

    Attributes:
        version: the model as the registry has it now.
        added: whether it is new in the registry.
        left_out: the files of the source that were not imported, with the reason.
    """

    version: ModelVersion
    added: bool
    left_out: tuple[str, ...]


@frozen(kw_only=True)
class Origin:
    """What a model without a record was made of.

    Attributes:
        base: the digest of the GGUF that it was dequantized from, or of the base of an adapter.
        parent: the address of that base; None for a path.
        place: the path of the GGUF or of the base; None if it has an address.
        fingerprint: of the model; None for that of its files.
    """

    base: str
    parent: str | None = None
    place: Path | None = None
    fingerprint: str | None = None


def import_model(
    registry: Registry,
    source: Path,
    *,
    name: str | None,
    check: Callable[[Path, Path], None],
    origin: Origin | None = None,
) -> Imported:
    """Register the model at `source`, or find the version if it is already registered.

    Args:
        registry: where it is registered.
        source: an exported folder or archive, or a folder in Hugging Face layout.
        name: the model's name; None for the one in its record.
        check: called for a folder without a record, with the folder of gathered files and the source (for messages);
            raises an error if the model could not be served. It may add files.
        origin: what the model was made of; None if nobody knows.

    Raises:
        UsageError: the source cannot be imported, or the model needs a name.
        RegistryError: the source is damaged or refused, or the registry has another model with its fingerprint.
    """
    source = absolute(source)
    _check_source(source)
    try:
        with gathering() as folder:
            record, left_out = _gather(source, folder)
            if record is None:
                check(folder, source)
            model = _new_model(record, folder, source, name)
            if origin is not None:
                model = evolve(
                    model,
                    fingerprint=origin.fingerprint or model.fingerprint,
                    base=origin.base,
                    parent=origin.parent,
                    config={"model": {"base": str(origin.place)}} if origin.place else {},
                )
            return _register(registry, model, record, folder, left_out)
    except OSError as error:
        raise RegistryError(f"{source} cannot be imported: {error.strerror or error}: {error.filename}") from error


def dequantized_fingerprint(digest: str) -> str:
    """The fingerprint of a model that was imported from the GGUF with this sha256."""
    return digest_json({"dequantized": digest})


def _check_source(source: Path) -> None:
    """Refuse what is neither a folder nor a regular file, without opening it: a FIFO would be waited for."""
    try:
        mode = source.stat().st_mode
    except FileNotFoundError:
        link = " (it is a broken symlink)" if source.is_symlink() else ""
        raise UsageError(f"{source} does not exist{link}") from None
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UsageError(f"{source} is neither a folder nor a regular file: save the model to one of them")


@contextlib.contextmanager
def gathering() -> Iterator[Path]:
    """An empty folder in the home's cache, for what is about to be registered; it is gone afterwards."""
    cache = home.home() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it as well
            if left.stat().st_mtime < time.time() - _ABANDONED_AFTER:
                shutil.rmtree(left)
    folder = cache / f"{_PREFIX}{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _gather(source: Path, folder: Path) -> tuple[ModelVersion | None, tuple[str, ...]]:
    """Put the model's files into `folder`; give its record, where it has one, and what was left out."""
    if not source.is_dir():
        record, top = find_record(source)
        own = {f"{top}/{name}" if top else name for name in (RECORD, README)}
        return record, tuple(sorted(set(unpack(source, top, record, folder)) - own))
    files, left_out = _files(source)
    if RECORD not in files:
        link_files(files, folder)
        return None, tuple(left_out)
    _check_regular(files[RECORD])
    if files[RECORD].stat().st_size > LONGEST:
        raise RegistryError(f"{source / RECORD} is too large for a record: export the model again")
    record = read_record(files[RECORD].read_bytes(), str(source / RECORD))
    wanted = {file.path: file for file in record.files}
    missing = sorted(wanted.keys() - files.keys())
    if missing:
        raise RegistryError(
            f"{source} is incomplete: its record lists {missing[0]!r}, which is missing; export the model again"
        )
    link_files({path: files[path] for path in wanted}, folder)
    for found in scan_model(folder):
        if found != wanted[found.path]:
            raise RegistryError(
                f"{source / found.path} does not match its record ({found.size} bytes, sha256 {found.sha256[:12]}…; "
                f"expected {wanted[found.path].size} bytes, {wanted[found.path].sha256[:12]}…): export the model again"
            )
    return record, (*left_out, *sorted(files.keys() - wanted.keys() - {RECORD, README}))


def _files(source: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder by relative path, links of the hub's cache followed; and the ones that are left out."""
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for parent, folders, names in os.walk(source, onerror=_raise):
        for name in sorted((*names, *folders)):
            path = Path(parent, name)
            relative = path.relative_to(source).as_posix()
            if name.startswith("."):
                left_out.append(f"{relative} (hidden)")
            elif name in folders and not path.is_symlink():
                continue
            elif path.suffix.lower() in PICKLED_SUFFIXES:
                left_out.append(f"{relative} (pickled: loading it could run any code)")
            else:
                files[relative] = _real(path, source)
        folders[:] = [name for name in folders if not name.startswith(".")]
    return files, left_out


def _raise(error: OSError) -> None:
    raise error


def _real(path: Path, source: Path) -> Path:
    """The file itself; a link must stay within the folder, or lead to the contents of the hub's cache."""
    if not path.is_symlink():
        return path
    real = path.resolve()
    # A snapshot in the hub's cache is models--ORG--NAME/snapshots/COMMIT, its contents are models--ORG--NAME/blobs.
    allowed = (source.resolve(), source.resolve().parent.parent / "blobs")
    if not real.is_file() or not any(real.is_relative_to(place) for place in allowed):
        raise RegistryError(f"{path} is refused: it is a symlink out of the folder; replace it with the file itself")
    return real


def link_files(files: Mapping[str, Path], folder: Path) -> None:
    """Put regular files, by their path in `folder`, there: by hard links, or as copies where these are impossible."""
    for relative, path in files.items():
        place = folder / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        _check_regular(path)
        try:
            os.link(path, place)
        except OSError:
            # Another file system, or a file of another user.
            shutil.copyfile(path, place)


def _check_regular(path: Path) -> None:
    if not path.is_file():
        raise RegistryError(f"{path} is refused: it is not a regular file")


def _new_model(record: ModelVersion | None, folder: Path, source: Path, name: str | None) -> NewModel:
    try:
        if record is not None:
            return evolve(record.model, name=record.name if name is None else name)
        if name is None:
            raise UsageError(f"{source} has no {RECORD}: name the model with --name")
        fingerprint = digest_json({"imported": model_digest(scan_model(folder))})
        return NewModel(name=name, fingerprint=fingerprint, base="imported")
    except ValueError as error:
        raise UsageError(
            f"{name!r:.200} is not a model name: expected a lower-case letter followed by a-z 0-9 . _ -, at most 128 "
            "characters"
        ) from error


def _register(
    registry: Registry, model: NewModel, record: ModelVersion | None, folder: Path, left_out: tuple[str, ...]
) -> Imported:
    digest = model_digest(scan_model(folder))
    before = [version for version in registry.find(model.name) if version.model.fingerprint == model.fingerprint]
    for version in before:
        if version.digest != digest:
            raise RegistryError(
                f"{version.address} has the same fingerprint but different files: import under another --name"
            )
    version = registry.add(model, folder)
    if record is not None:
        _complete(registry, version, record)
    version = registry.get(version.name, version.version)
    return Imported(version=version, added=not before, left_out=left_out)


def _complete(registry: Registry, version: ModelVersion, record: ModelVersion) -> None:
    """Add the tags and figures that the registry does not have yet; those that it has stay."""
    missing_tags = {key: value for key, value in record.model.tags.items() if key not in version.model.tags}
    if missing_tags:
        registry.set_tags(version.name, version.version, missing_tags)
    for suite, figures in record.metrics.items():
        known = version.metrics.get(suite, {})
        missing = {metric: figure for metric, figure in figures.items() if metric not in known}
        if missing:
            registry.add_metrics(version.name, version.version, suite, missing)
