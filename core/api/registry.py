"""What a registry keeps: models by name and version, aliases, metrics, and a history of events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import field, frozen, validators

from modelwright.core.api.records import Figure

MODEL_NAME = re.compile(r"[a-z][a-z0-9._-]*")
ALIAS_NAME = re.compile(r"(?![0-9]+\Z)[a-z0-9][a-z0-9._-]*")

MetricTable = Mapping[str, Mapping[str, Figure]]


@frozen(kw_only=True)
class NewModel:
    """A model about to be registered.

    Attributes:
        name: `[a-z][a-z0-9._-]*`; the registry gives the version.
        fingerprint: of all that made the model; adding the same one under the same name again gives the version that
            is there, so that a registration killed after its transaction is not repeated.
        base: what the training began from: an address with its digest, a folder, or "scratch".
        parent: the registered model that it continues, as `NAME@VERSION`.
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


@frozen(kw_only=True)
class Alias:
    """A name that points to a model version; `generation` counts its moves, from 1."""

    alias: str
    name: str
    version: int
    generation: int


@frozen(kw_only=True)
class RegistryEvent:
    """One line of a registry's history: added, alias, metrics, deleted."""

    time: datetime
    kind: str
    data: Mapping[str, Any]
