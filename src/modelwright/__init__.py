"""Modelwright: raw math, reasoning and general data to evaluated, registered and served language models.

The public names are imported when they are first used, so that `import modelwright` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from modelwright.core import testing as testing
    from modelwright.core.api import *  # noqa: F403
    from modelwright.core.stages.prepare.prepared import Prepared as Prepared
    from modelwright.core.stages.prepare.prepared import load_prepared as load_prepared
    from modelwright.grpc_server.client import AsyncClient as AsyncClient
    from modelwright.grpc_server.client import Client as Client

_HOMES = {
    "AsyncClient": "modelwright.grpc_server.client",
    "Client": "modelwright.grpc_server.client",
    "Prepared": "modelwright.core.stages.prepare.prepared",
    "load_prepared": "modelwright.core.stages.prepare.prepared",
}
_MODULES = {"testing": "modelwright.core.testing"}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    module = importlib.import_module(_HOMES.get(name, "modelwright.core.api"))
    try:
        value = getattr(module, name)
    except AttributeError:
        msg = f"module 'modelwright' has no attribute {name!r}"
        raise AttributeError(msg) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from modelwright.core import api

    return sorted({*globals(), *_HOMES, *_MODULES, *api.__all__})
