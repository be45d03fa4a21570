"""`[variants]`: which there are, which are wanted, and what cannot be in one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from modelwright.core.config.errors import Problem
from modelwright.core.config.layers import Origin, located
from modelwright.core.config.schema import VARIANT_NAME
from modelwright.core.config.words import KeyPath, closest, dotted, shown

if TYPE_CHECKING:
    from modelwright.core.config.extends import Layer

VARIANTS = "variants"
_NAME = "a lower-case letter, then any of a-z 0-9 _ -"
# What belongs to the file as a whole, with the reason why a variant cannot have it.
_NOT_IN_A_VARIANT = {
    "name": "a variant's name is made of the file's: NAME-VARIANT",
    "plugins": "plugins are chosen once, for all variants",
    "variants": "a variant cannot have variants",
    "extends": "write it at the file's top, for all variants",
}


def settle_variants(file: Layer) -> tuple[list[str], list[Problem]]:
    """Take out of a file's variants what cannot be merged; gives the names of all, and what is wrong."""
    problems: list[Problem] = []

    def wrong(path: KeyPath, message: str) -> None:
        problems.append(located(Origin(document=file.document, path=(VARIANTS, *path)), (), message))

    variants = file.values[VARIANTS]
    if not isinstance(variants, dict) or not variants:
        wrong((), "must be tables, one for each variant: [variants.NAME]")
        variants = {}
    for name, table in variants.items():
        if not VARIANT_NAME.fullmatch(name):
            # It is read all the same: it may hold other mistakes.
            wrong((name,), f"a variant's name must be {_NAME}")
        if not isinstance(table, dict):
            wrong((name,), f"must be a table of what differs in this variant, not {shown(table)}")
            continue
        for key in [key for key in table if key in _NOT_IN_A_VARIANT]:
            del table[key]
            wrong((name, key), f"does not belong in a variant: {_NOT_IN_A_VARIANT[key]}")
    file.values[VARIANTS] = {name: table for name, table in variants.items() if isinstance(table, dict)}
    return list(variants), problems


def unknown_variant(name: str, there: Iterable[str]) -> Problem:
    """The problem of a variant that is wanted and not among those `there`."""
    close = closest(name, there)
    meant = "" if close is None else f", did you mean {close}?"
    message = f"there is no such variant{meant} (there are: {', '.join(dotted((one,)) for one in there)})"
    return Problem(source="--variant", key=dotted((name,)), message=message)


def no_variants(name: str, file: str) -> Problem:
    """The problem of a variant that is wanted of a file without any."""
    message = f"there is no variant {shown(name)}: {file} has no [variants]"
    return Problem(source="--variant", key=dotted((name,)), message=message)
