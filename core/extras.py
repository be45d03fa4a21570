"""Packages of the extras, which need not be installed: import one, or say which extra to install."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from modelwright.core.api.errors import MissingDependencyError


def require(module: str, *, extra: str = "train", what: str = "") -> Any:
    """Import `module`, which one of the extras brings.

    Args:
        module: its full name; its first part is the package.
        extra: the extra of this project to install.
        what: the work that needs the package, as the beginning of the message: "preparing data".

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        said = f"{what} needs {package}" if what else f"{package} is not installed"
        raise MissingDependencyError(f"{said} ({error}): {_install(extra)}") from error


def check_installed(*packages: str, what: str, extra: str = "train") -> None:
    """Check that packages are installed, without importing them.

    Args:
        packages: their import names, which here are their own.
        what: the work that needs them, as the beginning of the message.
        extra: the extra of this project that brings them.

    Raises:
        MissingDependencyError: at least one is not installed.
    """
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        raise MissingDependencyError(f"{what} needs {', '.join(absent)}, which {verb} not installed: {_install(extra)}")


def _install(extra: str) -> str:
    return f"pip install 'modelwright[{extra}]'"
