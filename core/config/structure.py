"""Plain values to attrs classes by cattrs, strictly and with all mistakes at once; and back.

cattrs chooses a hook for each type, including the unusual types of plugins. The hooks here replace its own where those
would stop at a class's first failing validator, convert values of other types ("true", 1.5, 1 for true), or raise
errors for programmers.
"""

from __future__ import annotations

import functools
import math
import pathlib
import types
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSequence, MutableSet, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import cattrs
from attrs import NOTHING, Attribute, fields, has, resolve_types

from modelwright.core.api.errors import UsageError
from modelwright.core.api.registry import parse_address
from modelwright.core.api.wording import closest, either
from modelwright.core.config import metrics, paths
from modelwright.core.config.errors import Finding, Invalid, KeyPath, below, fail, not_one_of, shown
from modelwright.core.config.mistakes import (
    KINDS,
    REQUIRED,
    Attributes,
    all_complaints,
    collected,
    findings_of,
    said,
    unknown,
)

Class = TypeVar("Class")
Hook = Callable[[Any, Any], Any]

_SEQUENCES: dict[Any, Callable[[Iterable[Any]], Any]] = {
    tuple: tuple,
    list: list,
    set: set,
    frozenset: frozenset,
    Iterable: tuple,
    Sequence: tuple,
    MutableSequence: list,
    AbstractSet: frozenset,
    MutableSet: set,
}
_MAPPINGS = (dict, Mapping, MutableMapping)


def structure(value: Any, cls: type[Class]) -> Class:
    """An instance of `cls` from a plain value.

    Raises:
        Invalid: with a finding for each mistake.
    """
    try:
        return _converter().structure(value, cls)
    except Exception as error:
        raise Invalid(findings_of(error)) from error


def plain(value: Any) -> Any:
    """The inverse of `structure`: tables, arrays and scalars that both TOML and JSON can hold; None is left out."""
    if isinstance(value, Enum):
        return plain(value.value)
    if has(type(value)):
        value = {key: getattr(value, attribute.name) for key, attribute in attributes_of(type(value)).items()}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | set | frozenset):
        made = [plain(item) for item in value]
        return sorted(made, key=repr) if isinstance(value, set | frozenset) else made
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return value if isinstance(value, str | int | float) else _converter().unstructure(value)


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    factories: tuple[tuple[Callable[[Any], bool], Callable[[cattrs.Converter, Any], Hook]], ...] = (
        (lambda kind: kind in (Any, object), lambda _converter, _kind: _anything),
        (lambda kind: isinstance(kind, type) and issubclass(kind, Enum), _enum_hook),
        (lambda kind: get_origin(kind) is Literal, _literal_hook),
        (lambda kind: get_origin(kind) in (Union, types.UnionType), _union_hook),
        (lambda kind: (get_origin(kind) or kind) in _SEQUENCES, _sequence_hook),
        (lambda kind: (get_origin(kind) or kind) in _MAPPINGS, _mapping_hook),
        (lambda kind: isinstance(kind, type) and has(kind), class_hook),
    )
    for predicate, factory in factories:
        converter.register_structure_hook_factory(predicate, functools.partial(factory, converter))
    for kind, hook in _BY_NAME.items():
        converter.register_structure_hook(kind, hook)
    for kind, hook in _BY_CLASS.items():
        converter.register_structure_hook(kind, functools.partial(_scalar, hook, kind))
    return converter


def _scalar(hook: Hook, kind: type[Any], value: Any, cls: type[Any]) -> Any:
    """A scalar, or an instance of its subclass: singledispatch sends `class Size(str, Enum)` to the hook of str."""
    if issubclass(cls, Enum):
        return _member(value, cls)
    made = hook(value, cls)
    return made if cls is kind or issubclass(type(made), cls) else cls(made)


def _anything(value: Any, _: Any = None) -> Any:
    """Any value that JSON can hold: dates become strings, numbers must be finite."""
    if isinstance(value, Mapping):
        return collected({key: functools.partial(_anything, item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return list(collected({index: functools.partial(_anything, item) for index, item in enumerate(value)}).values())
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str):
        return str(value)
    if value is None:
        raise fail("must not be null: leave the key out")
    return plain(value) if isinstance(value, date | time) else value


# Choices


def _literal_hook(_converter: cattrs.Converter, kind: Any) -> Hook:
    allowed = get_args(kind)
    return lambda value, _: chosen(value, allowed)


def _enum_hook(_converter: cattrs.Converter, kind: type[Enum]) -> Hook:
    return lambda value, _: _member(value, kind)


def _member(value: Any, kind: type[Enum]) -> Enum:
    by_value = [(plain(member), member) for member in kind]
    picked = chosen(value, [one for one, _ in by_value])
    return next(member for one, member in by_value if one is picked)


def _union_hook(converter: cattrs.Converter, kind: Any) -> Hook:
    members = [member for member in get_args(kind) if member is not types.NoneType]
    optional = len(members) < len(get_args(kind))

    def hook(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        errors: list[tuple[Any, Invalid]] = []
        for member in sorted(members, key=lambda member: member is not type(value)):
            try:
                return converter.structure(value, member)
            except Exception as error:  # noqa: BLE001 - a plugin's class may raise anything
                errors.append((member, Invalid(findings_of(error))))
        if len(errors) == 1:
            raise errors[0][1]
        # A value of a member's kind was meant for it; its error says where it is wrong.
        for member, invalid in errors:
            if isinstance(value, _PYTHON.get(_words(member), ())):
                raise invalid
        literals = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
        close = closest(value, [one for one in literals if isinstance(one, str)]) if isinstance(value, str) else None
        meant = "" if close is None else f", did you mean {shown(close)}?"
        raise fail(f"must be {either(dict.fromkeys(map(_words, members)))}, not {shown(value)}{meant}")

    return hook


_PYTHON: dict[str, Any] = {"an array": list, "a table": dict, "a string": str}


def _words(member: Any) -> str:
    """A type in words."""
    origin = get_origin(member) or member
    if origin is Literal:
        return either(map(shown, get_args(member)))
    if origin in _SEQUENCES:
        return "an array"
    if origin in _MAPPINGS or (isinstance(origin, type) and has(origin)):
        return "a table"
    if origin in _BY_NAME:
        return "a string"
    return KINDS.get(origin, getattr(origin, "__name__", str(origin)))


# Arrays and tables


def _sequence_hook(converter: cattrs.Converter, kind: Any) -> Hook:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    fixed = origin is tuple and arguments and arguments[-1] is not Ellipsis

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise wrong("an array", value)
        if fixed and len(value) != len(arguments):
            raise fail(f"must be an array of {len(arguments)}, not of {len(value)}")
        kinds = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
        parts = {
            index: functools.partial(converter.structure, item, item_kind)
            for index, (item, item_kind) in enumerate(zip(value, kinds, strict=True))
        }
        return _SEQUENCES[origin](collected(parts).values())

    return hook


def _mapping_hook(converter: cattrs.Converter, kind: Any) -> Hook:
    key_kind, item_kind = get_args(kind) or (str, Any)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise wrong("a table", value)
        keys = collected({key: functools.partial(converter.structure, key, key_kind) for key in value})
        items = collected({key: functools.partial(converter.structure, item, item_kind) for key, item in value.items()})
        return {keys[key]: item for key, item in items.items()}

    return hook


# Classes


def attributes_of(cls: type[Any]) -> dict[str, Attribute[Any]]:
    """The fields that a table can set, by their key: metadata's "key", or else the constructor's argument."""
    resolve_types(cls)
    return {str(one.metadata.get("key", one.alias)): one for one in fields(cls) if one.init}


def class_hook(converter: cattrs.Converter, cls: type[Any]) -> Hook:
    """The hook that structures `cls`."""
    attributes = attributes_of(cls)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise wrong("a table", value)
        findings: list[Finding] = [((key,), unknown(key, attributes)) for key in value if key not in attributes]
        given: dict[str, Any] = {}
        for key, attribute in attributes.items():
            if key in value:
                try:
                    given[key] = converter.structure(value[key], attribute.type or Any)
                except Exception as error:  # noqa: BLE001 - a plugin's class may raise anything
                    findings += below(key, findings_of(error))
            elif attribute.default is NOTHING:
                findings.append(((key,), _missing(attribute.type)))
        if findings:
            more = all_complaints(cls, attributes, given)
            if not more and all(path[0] not in attributes for path, _ in findings):
                # Only unknown keys: the rest can be checked as a whole.
                more = _cross_findings(cls, attributes, given)
            raise Invalid([*findings, *more])
        return _built(cls, attributes, given)

    return hook


def _missing(kind: Any) -> str:
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if any(isinstance(choice, type) and has(choice) for choice in choices):
        return "this table is required"
    if any(isinstance(argument, type) and has(argument) for argument in get_args(kind)):
        return "one or more of these tables are required"
    return REQUIRED


def _built(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> Any:
    try:
        instance = cls(**{str(attributes[key].alias): value for key, value in given.items()})
    except Exception as error:
        raise Invalid(all_complaints(cls, attributes, given) or [((), said(error))]) from error
    findings = [(_key_path(key), message) for key, message in getattr(instance, "problems", tuple)()]
    if findings:
        raise Invalid(findings)
    return instance


def _cross_findings(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> list[Finding]:
    try:
        _built(cls, attributes, given)
    except Invalid as error:
        return list(error.findings)
    return []


def _key_path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


# Scalars

_INT64 = 2**63


def wrong(kind: str, value: Any) -> Invalid:
    """The error for a value that is not `kind`, a type in words."""
    # The decimal point shows why 32.0 is not an integer.
    return fail(f"must be {kind}, not {value if isinstance(value, float) else shown(value)}")


def boolean(value: Any, _: Any = None) -> bool:
    """True or false, not 1 or 0."""
    if not isinstance(value, bool):
        raise wrong("true or false", value)
    return value


def integer(value: Any, _: Any = None) -> int:
    """An integer of 64 bits, as TOML promises; neither true nor 1.0."""
    if type(value) is not int:
        raise wrong("an integer", value)
    if not -_INT64 <= value < _INT64:
        raise wrong("an integer of 64 bits", value)
    return value


def number(value: Any, _: Any = None) -> float:
    """A finite number; an integer becomes a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong("a number", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong("a finite number", value)
    return float(integer(value) if isinstance(value, int) else value)


def string(value: Any, _: Any = None) -> str:
    """A plain string, without the folder that it was written in."""
    if not isinstance(value, str):
        raise wrong("a string", value)
    return str(value)


def _address(value: Any, _: Any) -> str:
    """A model's address. Only its form is checked; the registry says whether the model exists."""
    text = string(value)
    try:
        parse_address(text)
    except UsageError as error:
        raise fail(str(error)) from None
    return text


def _resolved(resolve: Callable[[str], str]) -> Hook:
    """A hook for a string that resolves relative to the folder it was written in."""

    def hook(value: Any, _: Any) -> str:
        if not isinstance(value, str):
            raise wrong("a string", value)
        return resolve(value)

    return hook


def _path(value: Any, _: Any) -> pathlib.Path:
    """A plugin's own path option, resolved like any other."""
    if not isinstance(value, str):
        raise wrong("a string", value)
    return pathlib.Path(paths.file_path(value))


def _moment(kind: Any, name: str) -> Hook:
    """A hook for TOML's dates and times, and for the strings that they become in JSON."""

    def hook(value: Any, _: Any) -> Any:
        if type(value) is kind:
            return value
        try:
            return kind.fromisoformat(value)
        except (TypeError, ValueError):
            raise wrong(name, value) from None

    return hook


def chosen(value: Any, allowed: Sequence[Any]) -> Any:
    """The member of `allowed` that equals `value` and has its type: 0 is not false, and 1.0 is not 1."""
    for choice in allowed:
        alike = isinstance(value, str) if isinstance(choice, str) else type(value) is type(choice)
        if alike and value == choice:
            return choice
    raise fail(not_one_of(value, allowed))


# Hooks by class, found by singledispatch; those by NewType are found by identity.
_BY_CLASS: dict[Any, Hook] = {
    bool: boolean,
    int: integer,
    float: number,
    str: string,
    datetime: _moment(datetime, "a date with a time"),
    date: _moment(date, "a date"),
    time: _moment(time, "a time"),
    pathlib.Path: _path,
}
_BY_NAME: dict[Any, Hook] = {
    paths.ModelAddress: _address,
    paths.FilePath: _resolved(paths.file_path),
    paths.ModelSource: _resolved(paths.model_source),
    paths.DatasetSource: _resolved(paths.model_source),
    paths.ChatTemplate: _resolved(paths.chat_template),
    paths.RegistryUrl: _resolved(paths.registry_url),
    metrics.MetricLabel: metrics.metric_label,
}
