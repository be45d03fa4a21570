"""What there is to registries beside where they store: opening one, addresses, the environment."""

from __future__ import annotations

from modelwright.core.api.registry import Address, parse_address
from modelwright.core.registry.addresses import naming, resolve
from modelwright.core.registry.open import open_registry

__all__ = [
    "Address",
    "naming",
    "open_registry",
    "parse_address",
    "resolve",
]
