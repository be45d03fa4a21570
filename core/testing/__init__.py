"""Contract suites for plugin authors: `testing.engine`, `testing.registry`, `testing.trainer`, imported when used."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("engine", "registry", "trainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
