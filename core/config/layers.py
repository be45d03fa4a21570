"""The layers of a configuration, lowest first: files < variant < `--set`. Tables merge, arrays replace.

Below: `[variants]`, and the keys that cannot be in one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli
from attrs import field, frozen

from modelwright.core.api.wording import closest, printable
from modelwright.core.config.errors import (
    DEEPEST,
    ConfigError,
    Invalid,
    KeyPath,
    Problem,
    dotted,
    fail,
    quoted,
    shown,
)
from modelwright.core.config.files import SET, Document, Layer, Origin, located, parse_value
from modelwright.core.config.paths import Written
from modelwright.core.config.schema import VARIANT_NAME

# A part of a TOML key: bare, "basic" or 'literal'.
_PART = re.compile(r"""\s*(?:([A-Za-z0-9_-]+)|("(?:[^"\\]|\\.)*")|('[^']*'))\s*""")


@frozen(kw_only=True)
class Override:
    """One `--set K=V`.

    Attributes:
        parts: of K, each with whether it was quoted: a bare number may be an array's index.
        value: V; its strings know the working directory.
    """

    parts: tuple[tuple[str, bool], ...]
    value: Any

    @property
    def key(self) -> str:
        """K, for messages."""
        return dotted(tuple(part for part, _ in self.parts))

    def problem(self, message: str) -> Problem:
        """A problem with this override."""
        return Problem(source=SET, key=self.key, message=message)


def parse_override(text: str) -> Override:
    """Read `K=V`: K a dotted key, V a TOML value.

    Raises:
        ConfigError: it is anything else. For a bare word, the message shows the missing quotes.
    """
    parts, rest = _key(text)
    key = dotted(tuple(part for part, _ in parts))
    try:
        text.encode()
        value = parse_value(rest.strip())
    except UnicodeEncodeError:
        raise _refused(key, "the value is not UTF-8") from None
    except ValueError as error:
        rest = rest.strip()
        hint = f"strings need quotes, {SET} {shlex.quote(f'{key}={quoted(rest)}')}"
        if not rest or re.fullmatch(r"""[\[{"'].*""", rest, re.DOTALL):
            message = error.msg if isinstance(error, tomli.TOMLDecodeError) else str(error)
            hint = message if message[1:2].isupper() else f"{message[0].lower()}{message[1:]}"
        raise _refused(key, f"{shown(rest)} is not a TOML value: {hint}") from None
    if len(parts) > DEEPEST:
        raise _refused(shown(key), f"the key has more than {DEEPEST} parts")
    return Override(parts=parts, value=Written.mark(value, Path.cwd()))


def _refused(key: str, message: str) -> ConfigError:
    return ConfigError([Problem(source=SET, key=printable(key), message=printable(message))])


def _key(text: str) -> tuple[tuple[tuple[str, bool], ...], str]:
    parts: list[tuple[str, bool]] = []
    position = 0
    while match := _PART.match(text, position):
        bare, basic, literal = match.groups()
        try:
            parts.append((bare, False) if bare else (parse_value(basic or literal), True))
        except ValueError:
            break
        position = match.end()
        if text[position : position + 1] == "=":
            return tuple(parts), text[position + 1 :]
        if text[position : position + 1] != ".":
            break
        position += 1
    raise _refused(shown(text), "must be KEY=VALUE, such as --set train.max_steps=100")


@frozen(kw_only=True)
class Layers:
    """Layers merged into one tree that records where each part of it was given.

    Attributes:
        document: the file that is read. A required key that no layer has is reported as missing there.
        values: the merged tree.
        origins: for each path, where it was given, lowest layer first; several for a table that was merged.
    """

    document: Document
    values: dict[str, Any] = field(factory=dict)
    origins: dict[KeyPath, list[Origin]] = field(factory=dict)

    def merge(self, table: Mapping[str, Any], document: Document, *, at: KeyPath = ()) -> None:
        """Merge a table of a file over the layers so far; `at` is its path in the file."""
        self._over(self.values, table, (), Origin(document=document, path=at))

    def override(self, override: Override) -> None:
        """Apply a `--set` over the layers so far.

        A key below a table that the variant turns off, such as train.max_steps where it says `train = false`, is for
        the other variants.

        Raises:
            Invalid: its key leads nowhere.
        """
        holder: Any = self.values
        path: KeyPath = ()
        for position, (part, is_quoted) in enumerate(override.parts, start=1):
            key = _step(holder, path, part, is_quoted)
            rest = override.parts[position:]
            if not rest or (isinstance(holder, dict) and key not in holder):
                break
            holder, path = holder[key], (*path, key)
            if holder is False and self.origins[path][-1].path[:1] == (VARIANTS,):
                return
            self.origins[path].append(Origin(document=None, path=path))
        value = override.value
        for part, is_quoted in reversed(rest):
            if part.isdecimal() and not is_quoted:
                raise fail(f"there is no array with an entry {part} (for a table's key, write {quoted(part)})")
            value = {part: value}
        self._put(holder, key, value, path, Origin(document=None, path=path))

    def _over(self, target: dict[str, Any], table: Mapping[str, Any], path: KeyPath, origin: Origin) -> None:
        for key, value in table.items():
            self._put(target, key, value, path, origin)

    def _put(self, holder: Any, key: str | int, value: Any, path: KeyPath, origin: Origin) -> None:
        """Set or merge `holder[key]`; `path` and `origin` are the holder's."""
        here, given = (*path, key), Origin(document=origin.document, path=(*origin.path, key))
        there = holder[key] if isinstance(key, int) or key in holder else None
        if isinstance(there, dict) and isinstance(value, Mapping):
            self.origins.setdefault(here, []).append(given)
            self._over(there, value, here, given)
            return
        if there is not None:
            for known in [known for known in self.origins if known[: len(here)] == here]:
                del self.origins[known]
        holder[key] = self._recorded(value, here, given)

    def _recorded(self, value: Any, path: KeyPath, origin: Origin) -> Any:
        """A copy of `value`, with each part recorded as given at `origin`."""
        self.origins[path] = [origin]
        if not isinstance(value, dict | list):
            return value
        items = value.items() if isinstance(value, dict) else enumerate(value)
        copies = {
            key: self._recorded(item, (*path, key), Origin(document=origin.document, path=(*origin.path, key)))
            for key, item in items
        }
        return copies if isinstance(value, dict) else list(copies.values())

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A finding with its place: where the key was given last, or its table if the key is missing."""
        known = path
        while known and known not in self.origins:
            known = known[:-1]
        given = self.origins.get(known) or [Origin(document=self.document, path=())]
        # A missing key is reported in the file that was read, if that has the table at all.
        lacking = next((one for one in given if one.document is self.document), given[0])
        origin = given[-1] if known == path else lacking
        return located(origin, path[len(known) :], message)


def _step(holder: Any, path: KeyPath, part: str, is_quoted: bool) -> str | int:
    """The meaning of a part of an override's key in `holder`: a table's key or an array's index."""
    where = dotted(path)
    if isinstance(holder, list):
        if not is_quoted and part.isascii() and part.isdecimal() and int(part[:9]) < len(holder):
            return int(part)
        last = len(holder) - 1
        there = f"its entries are 0 to {last}" if last > 0 else "its only entry is 0" if holder else "it is empty"
        raise fail(f"the array {where} has no entry {shown(part)} ({there})")
    if not isinstance(holder, dict):
        raise fail(f"{where} is not a table, but {shown(holder)}")
    return part


def put_all(layers: Layers, overrides: list[Override]) -> list[Problem]:
    """Apply all overrides; the problems of those whose key leads nowhere."""
    problems = []
    for override in overrides:
        try:
            layers.override(override)
        except Invalid as error:
            problems += [override.problem(message) for _, message in error.findings]
    return problems


VARIANTS = "variants"
_NAME = "a lower-case letter, then any of a-z 0-9 _ -"
# Keys that belong to the file as a whole, and why a variant cannot have them.
_NOT_IN_A_VARIANT = {
    "name": "the variant's model is called NAME-VARIANT, after the file's name",
    "plugins": "set it at the top of the file, for all variants",
    "variants": "variants cannot be nested",
    "extends": "set it at the top of the file, for all variants",
}


def settle_variants(file: Layer) -> tuple[list[str], list[Problem]]:
    """Remove from a file's variants what cannot be merged; return all their names, and what is wrong."""
    problems: list[Problem] = []

    def wrong(path: KeyPath, message: str) -> None:
        problems.append(located(Origin(document=file.document, path=(VARIANTS, *path)), (), message))

    variants = file.values[VARIANTS]
    if not isinstance(variants, dict) or not variants:
        wrong((), "must be tables, one per variant: [variants.NAME]")
        variants = {}
    for name, table in variants.items():
        if not VARIANT_NAME.fullmatch(name):
            # Read it all the same: it may have other mistakes.
            wrong((name,), f"a variant's name must be {_NAME}")
        if not isinstance(table, dict):
            wrong((name,), f"must be a table of the changes in this variant, not {shown(table)}")
            continue
        for key in [key for key in table if key in _NOT_IN_A_VARIANT]:
            del table[key]
            wrong((name, key), f"cannot be set in a variant: {_NOT_IN_A_VARIANT[key]}")
    file.values[VARIANTS] = {name: table for name, table in variants.items() if isinstance(table, dict)}
    return list(variants), problems


def unknown_variant(name: str, there: Iterable[str]) -> Problem:
    """The problem of a requested variant that is not in `there`."""
    close = closest(name, there)
    meant = "" if close is None else f", did you mean {close}?"
    message = f"unknown variant{meant} (there are: {', '.join(dotted((one,)) for one in there)})"
    return Problem(source="--variant", key=dotted((name,)), message=message)


def no_variants(name: str, file: str) -> Problem:
    """The problem of a variant requested of a file without variants."""
    message = f"unknown variant: {file} has no [variants]"
    return Problem(source="--variant", key=dotted((name,)), message=message)
