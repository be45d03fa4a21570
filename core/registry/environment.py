"""What is recorded of where a model was made."""

from __future__ import annotations

import platform
import re
from importlib import metadata

PACKAGE = "package."
# The packages that decide how a model behaves.
TELLING = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "peft", "deepspeed", "math-verify")


def environment() -> dict[str, str]:
    """The versions of Python, the platform, and every installed package.

    Nothing here says who or on which host, and no accelerator is asked: that would need torch.

    Returns:
        `{"python": "3.11.7 (CPython)", "platform": "Linux-…", "package.NAME": "VERSION", …}`, packages by their
        normalised names (https://packaging.python.org/en/latest/specifications/name-normalization/).
    """
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        # A half-removed package has no metadata; the first of two with one name is the one that is imported.
        name = distribution.metadata["Name"] if distribution.metadata else None
        if name and distribution.version:
            versions.setdefault(f"{PACKAGE}{re.sub(r'[-_.]+', '-', name).lower()}", distribution.version)
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        **dict(sorted(versions.items())),
    }
