"""What messages say about a wrong field: attrs' validators in English, unknown keys and the table where they belong."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, get_args, get_origin

from attrs import fields, has, resolve_types

from modelwright.core.api.wording import closest, either
from modelwright.core.config.errors import shown

KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    tuple: "an array",
    dict: "a table",
}
# What attrs' own number validators write, for those that somebody's function calls.
_ATTRS = re.compile(r"^(must be (?:[<>]=?|==|!=) \S+): (.+)$")
NOT_EMPTY = "not be empty"


def complaint(validator: Any, instance: Any, attribute: Any, value: Any) -> str | None:
    """What `validator` has against `value`, or None where it has nothing.

    Raises:
        AttributeError: the validator asks `instance` for a field that it has not got.
    """
    parts = getattr(validator, "_validators", None)
    if type(validator).__name__ == "_AndValidator" and parts and _wish(validator) is None:
        return next(filter(None, (complaint(part, instance, attribute, value) for part in parts)), None)
    try:
        validator(instance, attribute, value)
    except AttributeError:
        raise
    except Exception as error:  # noqa: BLE001 - a plugin's validator may raise whatever it likes
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
    """What may follow "must" for one of attrs' own validators, None for anyone else's.

    attrs' validators are attrs classes whose names are private while their fields have been stable for years; should
    a field be missing, the validator's own message is used.
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
_TOP = "the file's top"
# For the file that is being read: the headers of the tables that have a key. Classes are structured far below the
# code that knows which file they are part of.
_homes: ContextVar[Mapping[str, Sequence[str]]] = ContextVar("homes", default=MappingProxyType({}))


@contextlib.contextmanager
def within(root: Any, *top: str) -> Iterator[None]:
    """While the block runs, `home_of` knows the tables of `root`, and the keys `top` that only a file has."""
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
    """The class of a table and whether it stands in an array, for a field's type."""
    if isinstance(kind, type) and has(kind):
        return kind, False
    for argument in get_args(kind):
        if isinstance(argument, type) and has(argument):
            return argument, get_origin(kind) is tuple
    return None, False


def home_of(key: str) -> str | None:
    """The header of the one table that has `key`, None where none or several have."""
    homes = _homes.get().get(key, ())
    return homes[0] if len(homes) == 1 else None


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
