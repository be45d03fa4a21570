"""What a registry keeps: models by name and version, aliases, metrics, a history of events; and model addresses."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import field, frozen, validators

from modelwright.core.api.errors import RegistryError, UsageError
from modelwright.core.api.files import TEMPORARY, sha256_file
from modelwright.core.api.hf_folder import PICKLED_SUFFIXES, is_adapter
from modelwright.core.api.records import Figure, digest_json

# At most 128 characters: a name becomes a folder's, with more before and after it, and file systems take 255 bytes.
MODEL_NAME = re.compile(r"[a-z][a-z0-9._-]{0,127}")
ALIAS_NAME = re.compile(r"(?![0-9]+\Z)[a-z0-9][a-z0-9._-]{0,127}")

LONGEST_KEY = 200

MetricTable = Mapping[str, Mapping[str, Figure]]

# As many digits as every database's integers have.
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_EXPECTED = "expected NAME (newest version), NAME@VERSION such as math@3, or @ALIAS such as @production"


@frozen(kw_only=True)
class NewModel:
    """A model about to be registered.

    Attributes:
        name: `[a-z][a-z0-9._-]*`, at most 128 characters; the registry gives the version.
        fingerprint: of all that made the model; adding the same one under the same name again gives the version that
            is there, so that a registration killed after its transaction is not repeated.
        base: what the training began from: the sha256 of the base's files, or "scratch".
        parent: the model that it continues: `NAME@VERSION` of a registry, or `org/name@COMMIT` of the hub.
        config: the resolved run configuration.
        data: digests of the data that went in, by path.
        environment: versions of Python, the packages, and the platform.
        code_version: Modelwright's version.
        training: figures of the training: steps, tokens, losses.
        tags: the user's own.
    """

    name: str = field(validator=validators.matches_re(MODEL_NAME, func=re.fullmatch))
    fingerprint: str
    base: str = "scratch"
    parent: str | None = None
    config: Mapping[str, Any] = field(factory=dict)
    data: Mapping[str, str] = field(factory=dict)
    environment: Mapping[str, str] = field(factory=dict)
    code_version: str = ""
    training: Mapping[str, Any] = field(factory=dict)
    tags: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class ModelFile:
    """One file of a registered model: its relative path, the sha256 of its content, its size in bytes."""

    path: str
    sha256: str
    size: int


@frozen(kw_only=True)
class ModelVersion:
    """A registered model: what was given as `NewModel`, and what the registry added.

    Attributes:
        name: the model's name.
        version: from 1, gapless for a name.
        digest: sha256 over the files' paths and contents, in hexadecimal.
        created: when, in UTC.
        model: what it was registered with.
        files: what it is made of.
        aliases: those that point here now.
        metrics: by suite, then metric.
    """

    name: str
    version: int
    digest: str
    created: datetime
    model: NewModel
    files: tuple[ModelFile, ...]
    aliases: tuple[str, ...] = ()
    metrics: MetricTable = field(factory=dict)

    @property
    def address(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.version}"

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter of the model that `model.base` and `model.parent` name, and no whole model."""
        return is_adapter(file.path for file in self.files)


@frozen(kw_only=True)
class Alias:
    """A name that points to a model version; `generation` counts its moves, from 1."""

    alias: str
    name: str
    version: int
    generation: int


@frozen(kw_only=True)
class RegistryEvent:
    """One line of a registry's history: added, alias, metrics, tags, deleted."""

    time: datetime
    kind: str
    data: Mapping[str, Any]


@frozen(kw_only=True)
class Collected:
    """What `Registry.collect` freed, or would free.

    Attributes:
        contents: how many files' contents.
        size: their bytes together.
    """

    contents: int
    size: int


def check_tags(tags: Mapping[str, str | None]) -> None:
    """Refuse tags that could not be shown in a line or found again; a value of None means to remove the tag.

    Raises:
        UsageError: a key is empty, longer than 200 characters, or holds a character that cannot be printed, a '=' or
            white space at an end; or a value is not text.
    """
    for key, value in tags.items():
        if not (isinstance(key, str) and 0 < len(key) <= LONGEST_KEY and key.isprintable() and key == key.strip()) or (
            "=" in key
        ):
            raise UsageError(
                f"{key!r:.300} cannot be a tag's key: expected 1 to {LONGEST_KEY} printable characters without '='"
            )
        if value is not None and not (isinstance(value, str) and is_text(value)):
            raise UsageError(f"tag {key!r}: {value!r:.200} cannot be its value: expected text without NUL")


def is_text(value: str) -> bool:
    """Whether every database can store this text: it has no NUL and no lone surrogate."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value)


def check_alias(alias: str) -> str:
    """Return `alias` if it is a valid alias.

    Raises:
        UsageError: it is not; the message says what is expected.
    """
    if not ALIAS_NAME.fullmatch(alias):
        digits = "; it may not be all digits" if alias.isdecimal() else ""
        raise UsageError(
            f"{alias!r:.200} is not a valid alias: expected at most 128 lowercase letters, digits, '.', '_' and "
            f"'-', beginning with a letter or digit{digits}"
        )
    return alias


def model_digest(files: Iterable[ModelFile]) -> str:
    """The digest of a model: sha256 over the canonical JSON of `{path: sha256}`, in hexadecimal."""
    return digest_json({file.path: file.sha256 for file in files})


def scan_model(folder: Path) -> tuple[ModelFile, ...]:
    """Check a model's folder and hash its files; the first thing that every backend's `add` does.

    Returns:
        The files at any depth, by path. Empty folders are not part of a model.

    Raises:
        RegistryError: the folder is missing or empty, or holds a link, a special file, pickled weights, a file that
            was not finished, or a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise RegistryError(f"{folder} is not a folder: expected a model in Hugging Face layout")
    paths: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        linked = [name for name in folders if Path(parent, name).is_symlink()]
        paths += [Path(parent, name) for name in (*linked, *names)]
    if not paths:
        raise RegistryError(f"{folder} is empty: expected a model in Hugging Face layout")
    relative = {path.relative_to(folder).as_posix(): path for path in paths}
    for name, path in sorted(relative.items()):
        reason = _refused(name, path)
        if reason:
            raise RegistryError(f"{str(path)!r} cannot be registered: {reason}")
    return tuple(
        ModelFile(path=name, sha256=sha256_file(path), size=path.stat().st_size)
        for name, path in sorted(relative.items())
    )


def _raise(error: OSError) -> None:
    raise error


def _refused(name: str, path: Path) -> str | None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "it is a symlink; put the file itself there"
    if not stat.S_ISREG(mode):
        return "it is not a regular file"
    if path.name.startswith(TEMPORARY):
        return "it is an unfinished file of a stopped program"
    if path.suffix.lower() in PICKLED_SUFFIXES:
        return "it is a pickle file, which can run code when loaded; save the weights as .safetensors"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return None


@frozen(kw_only=True)
class Address:
    """Which model is meant: an alias, or a name with or without a version. `str()` gives the text back.

    Attributes:
        name: the model's name; None for an alias.
        version: None for the newest.
        alias: None for a name.
    """

    name: str | None = None
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.alias is not None:
            return f"@{self.alias}"
        return f"{self.name}" if self.version is None else f"{self.name}@{self.version}"


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        UsageError: it is not an address; the message says why, and the expected forms.
    """
    name, at, rest = text.partition("@")
    if at and not name:
        if ALIAS_NAME.fullmatch(rest):
            return Address(alias=rest)
        why = "an alias may not be all digits" if rest.isdecimal() else f"{rest!r} is not a valid alias"
        raise _no_address(text, why)
    if not MODEL_NAME.fullmatch(name):
        raise _no_address(text, f"{name!r} is not a valid model name" if at else "it is not a valid model name")
    if not at:
        return Address(name=name)
    if not _VERSION.fullmatch(rest):
        hint = f" (for the alias, write '@{rest}')" if ALIAS_NAME.fullmatch(rest) else ""
        raise _no_address(text, f"{rest!r} is not a version number{hint}")
    return Address(name=name, version=int(rest))


def _no_address(text: str, why: str) -> UsageError:
    return UsageError(f"{text!r} is not a model address: {why}; {_EXPECTED}")
