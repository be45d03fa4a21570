"""Whatever structuring raises, as findings; and the words for keys that are unknown or missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cattrs

from modelwright.core.config.errors import Finding, Invalid, below
from modelwright.core.config.homes import home_of
from modelwright.core.config.validators import said
from modelwright.core.config.words import closest, either

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_SURE = 0.85


def findings_of(error: BaseException) -> list[Finding]:
    """The findings in an exception: our own, cattrs' (its notes say where), or anybody's message."""
    if isinstance(error, Invalid):
        return list(error.findings)
    if isinstance(error, cattrs.ClassValidationError | cattrs.IterableValidationError):
        noted, others = error.group_exceptions()
        findings = [finding for inner in others for finding in findings_of(inner)]
        for inner, note in noted:
            key = note.name if isinstance(note, cattrs.AttributeValidationNote) else note.index
            # cattrs tells of a missing field by the KeyError of its generated code.
            findings += [((key,), REQUIRED)] if isinstance(inner, KeyError) else below(key, findings_of(inner))
        return findings
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return [((key,), unknown(key, ())) for key in sorted(error.extra_fields)]
    return [((), said(error))]


def collected(parts: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """What each part makes.

    Raises:
        Invalid: with the findings of all parts, each under its part's key.
    """
    made: dict[Any, Any] = {}
    findings: list[Finding] = []
    for key, part in parts.items():
        try:
            made[key] = part()
        except Exception as error:  # noqa: BLE001 - a plugin's class may raise whatever it likes
            findings += below(key, findings_of(error))
    if findings:
        raise Invalid(findings)
    return made


REQUIRED = "this key is required"


def unknown(key: str, known: Collection[str]) -> str:
    """The message for a key that a table has not got: the one that was meant, or the table where it belongs."""
    close = closest(key, known)
    home = home_of(key)
    if home is not None and closest(key, known, cutoff=_SURE) is None:
        return f"unknown key, it belongs in {home}"
    if close is not None:
        return f"unknown key, did you mean {close}?"
    return f"unknown key, {f'expected {either(known)}' if known else 'none is expected here'}"
