"""Finds all mistakes in a value, where attrs and cattrs stop at the first, and words them.

attrs' validators in plain English; unknown keys, and where they belong; the findings in other exceptions.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, get_args, get_origin

import cattrs
from attrs import NOTHING, Attribute, Converter, fields, has, resolve_types

from modelwright.core.api.wording import closest, either
from modelwright.core.config.errors import Finding, Invalid, below, shown

Attributes = Mapping[str, "Attribute[Any]"]

# Messages of validators

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    tuple: "an array",
    dict: "a table",
}
# The messages of attrs' own number validators, for functions that call them.
_ATTRS = re.compile(r"^(must be (?:[<>]=?|==|!=) \S+): (.+)$")
NOT_EMPTY = "not be empty"


def complaint(validator: Any, instance: Any, attribute: Any, value: Any) -> str | None:
    """The message of `validator` about `value`; None if the value is valid.

    Raises:
        AttributeError: the validator reads a field that `instance` does not have.
    """
    parts = getattr(validator, "_validators", None)
    if type(validator).__name__ == "_AndValidator" and parts and _wish(validator) is None:
        return next(filter(None, (complaint(part, instance, attribute, value) for part in parts)), None)
    try:
        validator(instance, attribute, value)
    except AttributeError:
        raise
    except Exception as error:  # noqa: BLE001 - a plugin's validator may raise anything
        wish = _wish(validator)
        if wish is not None:
            return f"must {wish}" if wish == NOT_EMPTY else f"must {wish}, not {shown(value)}"
        return said(error, attribute.name)
    return None


def said(error: BaseException, name: str = "") -> str:
    """The first line of an exception's own message, without the attribute's name in front."""
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    line = next(iter(text.strip().splitlines()), "").removeprefix(f"{name!r} ").removeprefix(f"{name} ")
    return _ATTRS.sub(r"\1, not \2", line) or type(error).__name__


def _wish(validator: Any) -> str | None:
    """The words after "must" for one of attrs' own validators; None for any other.

    attrs' validators are attrs classes with private names, but their fields have been stable for years. If a field is
    missing, the validator's own message is used.
    """
    say = _WISHES.get(type(validator).__name__)
    try:
        return say(validator) if say else None
    except (AttributeError, TypeError):
        return None


_WISHES: dict[str, Callable[[Any], str | None]] = {
    "_NumberValidator": lambda one: f"be {one.compare_op} {_number(one.bound)}",
    "_InValidator": lambda one: f"be {either(map(shown, one.options))}",
    "_InstanceOfValidator": lambda one: f"be {either(map(_type, _tuple(one.type)))}",
    "_MatchesReValidator": lambda one: f"match the pattern {one.pattern.pattern}",
    "_MinLengthValidator": lambda one: NOT_EMPTY if one.min_length == 1 else f"have {one.min_length} or more entries",
    "_MaxLengthValidator": lambda one: f"have {one.max_length} or fewer entries",
    "_OptionalValidator": lambda one: _joined(_tuple(one.validator), " and "),
    "_AndValidator": lambda one: _joined(one._validators, " and "),  # noqa: SLF001 - the only way to its parts
    "_OrValidator": lambda one: _joined(one.validators, " or "),
}


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _type(kind: type[Any]) -> str:
    return KINDS.get(kind, kind.__name__)


def _joined(validators: Iterable[Any], word: str) -> str | None:
    wishes = [_wish(validator) for validator in validators]
    known = [wish for wish in wishes if wish is not None]
    if not known or len(known) < len(wishes):
        return None
    first, *rest = known
    # "be an integer > 0", not "be an integer and be > 0".
    return first + "".join(_continued(wish, word, known) for wish in rest)


def _continued(wish: str, word: str, known: list[str]) -> str:
    if not all(one.startswith("be ") for one in known):
        return f"{word}{wish}"
    wish = wish.removeprefix("be ")
    typed = known[0].removeprefix("be ") in KINDS.values()
    return f" {wish}" if word == " and " and typed and wish[0] in "<>=!" else f"{word}{wish}"


def _number(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


# Unknown and missing keys

_SURE = 0.85
_TOP = "at the top of the file"
# For the file that is being read: the headers of the tables that have a key. Classes are structured far below the
# code that knows which file they are part of.
_homes: ContextVar[Mapping[str, Sequence[str]]] = ContextVar("homes", default=MappingProxyType({}))


@contextlib.contextmanager
def within(root: Any, *top: str) -> Iterator[None]:
    """While the block runs, `home_of` knows the tables of `root` and the keys `top`, which only a file has."""
    token = _homes.set(_headers(root) | {key: [_TOP] for key in top})
    try:
        yield
    finally:
        _homes.reset(token)


@functools.cache
def _headers(root: type[Any]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}

    def visit(cls: type[Any], header: str) -> None:
        for attribute in fields(resolve_types(cls)):
            key = str(attribute.metadata.get("key", attribute.name))
            homes.setdefault(key, []).append(header or _TOP)
            table, many = _table(attribute.type)
            if table is not None:
                inner = f"{header.strip('[]')}.{key}".lstrip(".")
                visit(table, f"[[{inner}]]" if many else f"[{inner}]")

    visit(root, "")
    return homes


def _table(kind: Any) -> tuple[type[Any] | None, bool]:
    """For a field's type: the class of its table, and whether it is an array of tables."""
    if isinstance(kind, type) and has(kind):
        return kind, False
    for argument in get_args(kind):
        if isinstance(argument, type) and has(argument):
            return argument, get_origin(kind) is tuple
    return None, False


def home_of(key: str) -> str | None:
    """Where `key` belongs, such as "in [train]"; None if no table or several have it."""
    homes = _homes.get().get(key, ())
    if len(homes) != 1:
        return None
    return _TOP if homes[0] == _TOP else f"in {homes[0]}"


REQUIRED = "this key is required"


def unknown(key: str, known: Collection[str]) -> str:
    """The message for a key that a table does not have: the key that was meant, or the table where it belongs."""
    close = closest(key, known)
    home = home_of(key)
    if home is not None and closest(key, known, cutoff=_SURE) is None:
        return f"unknown key, it belongs {home}"
    if close is not None:
        return f"unknown key, did you mean {close}?"
    return f"unknown key, {f'expected {either(known)}' if known else 'this table takes no keys'}"


# All fields of a class


def all_complaints(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> list[Finding]:
    """The messages of the given fields' validators; attrs itself stops at the first."""
    draft, findings = _draft(cls, attributes, given)
    for key in given:
        attribute = attributes[key]
        if attribute.validator is None:
            continue
        try:
            message = complaint(attribute.validator, draft, attribute, getattr(draft, attribute.name))
        except AttributeError:
            # This field, or one that it is compared with, could not be made, which has a finding of its own.
            continue
        if message is not None:
            findings.append(((key,), message))
    return findings


def _draft(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> tuple[Any, list[Finding]]:
    """An instance with all fields that can be made, for validators that compare fields; and why others are missing."""
    draft = object.__new__(cls)
    findings: list[Finding] = []
    for key, attribute in attributes.items():
        try:
            value = _converted(attribute, given[key]) if key in given else _default(attribute, draft)
        except Exception as error:  # noqa: BLE001 - a plugin's converter or default may raise anything
            if key in given:
                findings.append(((key,), said(error, attribute.name)))
            continue
        if value is not NOTHING:
            object.__setattr__(draft, attribute.name, value)
    return draft, findings


def _default(attribute: Attribute[Any], draft: Any) -> Any:
    default: Any = attribute.default
    if not hasattr(default, "takes_self"):
        return default
    return default.factory(draft) if default.takes_self else default.factory()


def _converted(attribute: Attribute[Any], value: Any) -> Any:
    converter = attribute.converter
    if converter is None or isinstance(converter, Converter):
        # A Converter may need an instance, and there is none yet: check the field as it was given.
        return value
    return converter(value)


# From exceptions


def findings_of(error: BaseException) -> list[Finding]:
    """The findings in an exception: our own, those in cattrs' notes, or the message of any other."""
    if isinstance(error, Invalid):
        return list(error.findings)
    if isinstance(error, cattrs.ClassValidationError | cattrs.IterableValidationError):
        noted, others = error.group_exceptions()
        findings = [finding for inner in others for finding in findings_of(inner)]
        for inner, note in noted:
            key = note.name if isinstance(note, cattrs.AttributeValidationNote) else note.index
            # cattrs reports a missing field by the KeyError of its generated code.
            findings += [((key,), REQUIRED)] if isinstance(inner, KeyError) else below(key, findings_of(inner))
        return findings
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return [((key,), unknown(key, ())) for key in sorted(error.extra_fields)]
    return [((), said(error))]


def collected(parts: Mapping[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """The result of each part.

    Raises:
        Invalid: with the findings of all parts, each under its part's key.
    """
    made: dict[Any, Any] = {}
    findings: list[Finding] = []
    for key, part in parts.items():
        try:
            made[key] = part()
        except Exception as error:  # noqa: BLE001 - a plugin's class may raise anything
            findings += below(key, findings_of(error))
    if findings:
        raise Invalid(findings)
    return made
