"""Registries, except where they store models: opening one, addresses, records, cards, comparing, export and import."""

from __future__ import annotations

from modelwright.core.api.registry import Address, parse_address
from modelwright.core.registry.addresses import naming, open_registry, resolve

__all__ = [
    "Address",
    "naming",
    "open_registry",
    "parse_address",
    "resolve",
]
