"""Tables to attrs classes, with what is wrong in every field of a table and not only in the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from attrs import NOTHING, Attribute, Converter, fields, has, resolve_types

from modelwright.core.config.errors import Finding, Invalid, below
from modelwright.core.config.failures import REQUIRED, findings_of, unknown
from modelwright.core.config.scalars import Hook, wrong
from modelwright.core.config.validators import complaint, said

if TYPE_CHECKING:
    import cattrs

    from modelwright.core.config.words import KeyPath

Attributes = Mapping[str, "Attribute[Any]"]


def attributes_of(cls: type[Any]) -> dict[str, Attribute[Any]]:
    """The fields of a class that a table can set, by their key: metadata's "key", else the constructor's argument."""
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
                except Exception as error:  # noqa: BLE001 - a plugin's class may raise whatever it likes
                    findings += below(key, findings_of(error))
            elif attribute.default is NOTHING:
                findings.append(((key,), _missing(attribute.type)))
        if findings:
            more = _complaints(cls, attributes, given)
            if not more and all(path[0] not in attributes for path, _ in findings):
                # Unknown keys alone: the rest can be looked at as a whole.
                more = _cross_findings(cls, attributes, given)
            raise Invalid([*findings, *more])
        return _built(cls, attributes, given)

    return hook


def _missing(kind: Any) -> str:
    if isinstance(kind, type) and has(kind):
        return "this table is required"
    if any(isinstance(argument, type) and has(argument) for argument in get_args(kind)):
        return "one or more of these tables are required"
    return REQUIRED


def _built(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> Any:
    try:
        instance = cls(**{str(attributes[key].alias): value for key, value in given.items()})
    except Exception as error:
        raise Invalid(_complaints(cls, attributes, given) or [((), said(error))]) from error
    findings = [(_path(key), message) for key, message in getattr(instance, "problems", tuple)()]
    if findings:
        raise Invalid(findings)
    return instance


def _cross_findings(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> list[Finding]:
    try:
        _built(cls, attributes, given)
    except Invalid as error:
        return list(error.findings)
    return []


def _path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def _complaints(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> list[Finding]:
    """What the given fields' own validators say; attrs itself would stop at the first."""
    draft, findings = _draft(cls, attributes, given)
    for key in given:
        attribute = attributes[key]
        if attribute.validator is None:
            continue
        try:
            message = complaint(attribute.validator, draft, attribute, getattr(draft, attribute.name))
        except AttributeError:
            # This field, or one that it is compared with, could not be made: that has a finding of its own.
            continue
        if message is not None:
            findings.append(((key,), message))
    return findings


def _draft(cls: type[Any], attributes: Attributes, given: Mapping[str, Any]) -> tuple[Any, list[Finding]]:
    """An instance with as many fields as can be made, for validators that compare two; and what kept others out."""
    draft = object.__new__(cls)
    findings: list[Finding] = []
    for key, attribute in attributes.items():
        try:
            value = _converted(attribute, given[key]) if key in given else _default(attribute, draft)
        except Exception as error:  # noqa: BLE001 - a plugin's converter or default may raise whatever it likes
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
        # A Converter may ask for an instance, and there is none yet: the field is checked as it was given.
        return value
    return converter(value)
