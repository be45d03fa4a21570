"""Addresses of models: `NAME` (its newest version), `NAME@3`, `@ALIAS`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from attrs import frozen

from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelNotFoundError, UsageError
from modelwright.core.api.registry import ALIAS_NAME, MODEL_NAME, ModelVersion

# As many digits as every database's integers have.
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_EXPECTED = "expected NAME (its newest version), NAME@VERSION such as math@3, or @ALIAS such as @production"


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
        UsageError: it is none; the message says why, and the expected forms.
    """
    name, at, rest = text.partition("@")
    if at and not name:
        if ALIAS_NAME.fullmatch(rest):
            return Address(alias=rest)
        why = "an alias may not be all digits" if rest.isdecimal() else f"{rest!r} is no alias's name"
        raise _no_address(text, why)
    if not MODEL_NAME.fullmatch(name):
        raise _no_address(text, f"{name!r} is no model's name" if at else "no model can have that name")
    if not at:
        return Address(name=name)
    if not _VERSION.fullmatch(rest):
        hint = f" (for the alias, write '@{rest}')" if ALIAS_NAME.fullmatch(rest) else ""
        raise _no_address(text, f"{rest!r} is no version{hint}")
    return Address(name=name, version=int(rest))


def _no_address(text: str, why: str) -> UsageError:
    return UsageError(f"{text!r} is no model address: {why}; {_EXPECTED}")


def resolve(registry: Registry, address: str | Address) -> ModelVersion:
    """The model version at an address.

    Raises:
        UsageError: the text is no address.
        ModelNotFoundError: nothing is there; the message says what is.
    """
    address = parse_address(address) if isinstance(address, str) else address
    try:
        if address.alias is not None:
            alias = registry.resolve(address.alias)
            return registry.get(alias.name, alias.version)
        assert address.name is not None
        return registry.get(address.name, address.version)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(_what_there_is(address, error, registry.find())) from error


def _what_there_is(address: Address, error: ModelNotFoundError, models: Sequence[ModelVersion]) -> str:
    names = sorted({model.name for model in models})
    aliases = {alias: f"@{alias}" for alias in sorted(alias for model in models for alias in model.aliases)}
    if not models:
        return f"there is no model {str(address)!r}: the registry is empty"
    if address.alias is not None:
        message = f"there is no alias '{address}'"
        message += _did_you_mean(address.alias, {name: name for name in names} | aliases)
        return f"{message} (aliases: {_listed(aliases.values())}; models: {_listed(names)})"
    assert address.name is not None
    versions = [model.version for model in models if model.name == address.name]
    if versions:
        return f"{error} (versions: {_ranges(versions)})"
    message = f"there is no model {address.name!r}"
    message += _did_you_mean(address.name, aliases | {name: name for name in names})
    return f"{message} (models: {_listed(names)}; aliases: {_listed(aliases.values())})"


def _did_you_mean(name: str, addresses: dict[str, str]) -> str:
    close = difflib.get_close_matches(name, addresses, n=1)
    return f", did you mean {addresses[close[0]]!r}?" if close else ""


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _ranges(versions: Sequence[int]) -> str:
    """`[1, 2, 3, 5]` → `1-3, 5`."""
    spans: list[list[int]] = []
    for version in sorted(versions):
        if spans and version == spans[-1][-1] + 1:
            spans[-1][1:] = [version]
        else:
            spans.append([version])
    return ", ".join("-".join(map(str, span)) for span in spans)
