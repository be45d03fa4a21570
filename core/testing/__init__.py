"""Contract suites for plugin authors, imported when used: `testing.adapter`, `engine`, `registry` and `trainer`."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("adapter", "engine", "registry", "trainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
