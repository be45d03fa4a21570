"""The grammar of model addresses: `NAME` (its newest version), `NAME@3`, `@ALIAS`."""

from __future__ import annotations

import re

from attrs import frozen

from modelwright.core.api.errors import UsageError
from modelwright.core.api.registry import ALIAS_NAME, MODEL_NAME

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
