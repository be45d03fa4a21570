"""The default places of runs, cache and registry: `$MODELWRIGHT_HOME`."""

from __future__ import annotations

import os
from pathlib import Path

from modelwright.core.api.files import absolute

HOME = "MODELWRIGHT_HOME"
REGISTRY = "MODELWRIGHT_REGISTRY"


def home() -> Path:
    """The home folder as an absolute path: `$MODELWRIGHT_HOME`, by default `.modelwright` in the working directory.

    Raises:
        UsageError: it is relative, and the working directory has been removed.
    """
    return absolute(Path(os.environ.get(HOME) or ".modelwright"))


def runs() -> Path:
    """The folder of the runs' folders."""
    return home() / "runs"


def cache() -> Path:
    """The folder of results that are kept by what they were made from."""
    return home() / "cache"


def registry_url(named: str | None = None) -> str:
    """The registry's URL: the one named, else `$MODELWRIGHT_REGISTRY`, else the SQLite file in the home."""
    return named or os.environ.get(REGISTRY) or f"sqlite:///{home() / 'registry.db'}"
