"""configuration.md: every key of a run file and of an evaluation file, from the classes that read them."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NewType, Union, get_args, get_origin

from attrs import NOTHING, Attribute, Factory, frozen, has

from generator.text import block, code, page, plain, read_doc, sentence, table
from modelwright.core.api.components import SPECS, ComponentSpec, EngineSpec
from modelwright.core.config.classes import attributes_of
from modelwright.core.config.extends import LONGEST
from modelwright.core.config.schema import EvalConfig, RunConfig
from modelwright.core.plugins import discover

_INTRODUCTION = """
A run file says how one model, or several variants of one, are made; an evaluation file says which registered models are
graded on which test sets. Both are TOML, or YAML 1.2 with the same keys. Unknown keys are errors; `modelwright config
check FILE` names every mistake with its line, `modelwright config show FILE` prints what the file comes to.

Paths are relative to the file that they stand in; those of `--set` to the working directory.
"""

_LAYERS = f"""
## What a file stands on

| key | type | meaning |
| --- | --- | --- |
| `extends` | path, or array of paths | Files that are read first, {LONGEST} one on another at most. |
| `variants` | table of tables | `[variants.NAME]`: merged over the rest, makes `NAME-VARIANT`. In run files only. |

What stands later goes over what stands before: `extends`, the file, the variant, `--set KEY=VALUE`. Tables are merged;
arrays and values take the place of what was there. A variant cannot have `name`, `plugins`, `variants` or `extends`.
"""

_OPTIONS = """
Each component brings options of its own, which are checked like the rest of the file: those of a format go into
`[data.options]` (or `options` of a test set), those of a trainer into `[train.options]`, and those of a metric beside
its name: `metrics = [{ name = "exact_match", ignore_case = true }]`, or `exact_match(ignore_case=true)` as `--metric`
and conditions have it. Options of installed plugins are checked in the same way.
"""

_NAMES = {str: "string", int: "whole number", float: "number", bool: "true or false", type(None): ""}
_SPECIAL = {
    "FilePath": "path",
    "ModelSource": "path or address",
    "ModelAddress": "address",
    "ChatTemplate": "name or path",
    "RegistryUrl": "URL",
    "MetricLabel": "metric",
}
_NOT_YET = "is not supported by this version"


@frozen(kw_only=True)
class _Table:
    """A class, and the header of its table."""

    cls: type[Any]
    header: str


def configuration() -> str:
    """The page."""
    run = list(_tables(RunConfig))
    return page(
        "# Configuration",
        _INTRODUCTION,
        _LAYERS,
        "## Run files",
        *(_section(one) for one in run),
        "## Evaluation files",
        "An evaluation file has the key `models` at its top, which tells it from a run file.",
        *(_section(one) for one in _tables(EvalConfig) if one not in run),
        "`[evaluate.generation]` and `[plugins]` are those of a run file.",
        "## Options of the built-in components",
        _OPTIONS,
        *_components(),
    )


def _tables(cls: type[Any], path: str = "", *, array: bool = False) -> Iterator[_Table]:
    """A class and those of its fields, in the order in which a file is written."""
    header = "" if not path else f"[[{path}]]" if array else f"[{path}]"
    yield _Table(cls=cls, header=header)
    for key, attribute in attributes_of(cls).items():
        inner, many = _inner(attribute.type)
        if inner is not None:
            yield from _tables(inner, f"{path}.{key}" if path else key, array=many)


def _inner(kind: Any) -> tuple[type[Any] | None, bool]:
    """The class of the table or tables that a field holds, and whether they are an array."""
    if isinstance(kind, type) and has(kind):
        return kind, False
    for argument in get_args(kind):
        if isinstance(argument, type) and has(argument):
            return argument, get_origin(kind) is tuple
    return None, False


def _section(one: _Table) -> str:
    doc = read_doc(one.cls)
    rows = list(_rows(one.cls))
    heading = f"### {code(one.header)}" if one.header else "### At the top"
    return page(heading, doc.text, table(("key", "type", "default", "meaning"), rows))


def _rows(cls: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    meanings = _meanings(cls)
    for key, attribute in attributes_of(cls).items():
        inner, many = _inner(attribute.type)
        kind = _kind(attribute.type)
        if inner is not None:
            kind = "array of tables" if many else "table"
        bounds = _bounds(attribute.validator)
        meaning = sentence(meanings.get(attribute.name, ""))
        if not meaning and inner is not None:
            meaning = sentence(read_doc(inner).summary.partition(": ")[2] or read_doc(inner).summary)
        refused = _refused(attribute)
        note = f"This version refuses {refused}." if refused else ""
        yield code(key), f"{kind}{bounds}", _default(attribute), f"{meaning} {note}".strip()


def _meanings(cls: type[Any]) -> dict[str, str]:
    """What the docstrings of a class and of those above it say of its fields."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        found |= read_doc(one).entries.get("Attributes", {}) if "__doc__" in vars(one) else {}
    return found


def _kind(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, NewType):
        return _SPECIAL[kind.__name__]
    if origin is Literal:
        return ", ".join(code(_toml(value)) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(filter(None, map(_kind, arguments)))
    if origin is tuple:
        return f"array of {_kind(arguments[0])}s".replace("addresss", "addresses")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {_kind(arguments[1])}s"
    return "table" if kind is Any else _NAMES.get(kind, "table")


def _bounds(validator: Any) -> str:
    """What attrs' own validators ask of a number, such as `, > 0`."""
    found = list(_comparisons(validator))
    return "".join(f", {one}" for one in found)


def _comparisons(validator: Any) -> Iterator[str]:
    for inner in getattr(validator, "_validators", ()):
        yield from _comparisons(inner)
    if hasattr(validator, "validator"):
        yield from _comparisons(validator.validator)
    if hasattr(validator, "compare_op"):
        bound = validator.bound
        yield code(f"{validator.compare_op} {bound if abs(bound) < 2**31 else '2^63'}")
    if hasattr(validator, "min_length"):
        yield "not empty"


def _refused(attribute: Attribute[Any]) -> str:
    """Which values the validator puts off to a later version: it is asked."""
    if attribute.validator is None:
        return ""
    inner, _ = _inner(attribute.type)
    candidates: tuple[Any, ...] = get_args(attribute.type) if get_origin(attribute.type) is Literal else ()
    if attribute.type is bool:
        candidates = (True, False)
    elif attribute.type is float:
        candidates = (0.5,)
    elif inner is not None and "adapter" in attribute.name:
        candidates = (inner(),)
    refused = []
    for value in candidates:
        try:
            attribute.validator(None, attribute, value)
        except ValueError as error:
            if _NOT_YET in str(error):
                refused.append("the table" if has(type(value)) else code(_toml(value)))
    if attribute.type is float:
        return f"all but {code(_toml(attribute.default))}" if refused else ""
    return " and ".join(refused)


def _default(attribute: Attribute[Any]) -> str:
    default: Any = attribute.default
    if default is NOTHING:
        return "required"
    inner, _ = _inner(attribute.type)
    if isinstance(default, Factory):  # type: ignore[arg-type]
        return "" if inner is not None else code(_toml(default.factory()))
    return "" if default is None or (inner is not None and default == ()) else code(_toml(default))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return "{}"
    return f"{value:g}" if isinstance(value, float) and value < 1 else str(value)


def _components() -> Iterator[str]:
    """The options of what comes along; other packages' plugins have pages of their own."""
    plugins = discover()
    own = [plugin for plugin in plugins.found if plugin.distribution == "modelwright"]
    for kind in SPECS:
        for spec in (one for plugin in own for one in plugin.components if one.kind == kind.kind):
            yield _component(spec)


def _component(spec: ComponentSpec) -> str:
    # A run file has no place for an engine's options yet.
    rows = [] if spec.kind == EngineSpec.kind else list(_option_rows(spec.options))
    options = (
        table(("option", "type", "default", "meaning"), rows)
        if rows
        else ""
        if spec.kind == EngineSpec.kind
        else "No options."
    )
    about = ""
    if spec.kind == "format":
        about = _reads(spec)
    return page(f"### {spec.kind.capitalize()} `{spec.name}`", plain(sentence(spec.summary)), about, options)


def _option_rows(cls: type[Any], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """The rows of an options class, and after each table of it those of its keys."""
    for (key, attribute), (_, *cells) in zip(attributes_of(cls).items(), _rows(cls), strict=True):
        yield code(f"{path}{key}"), cells[0], cells[1], cells[2]
        inner, _ = _inner(attribute.type)
        if inner is not None:
            yield from _option_rows(inner, f"{path}{key}.")


def _reads(spec: ComponentSpec) -> str:
    """What a format's class says of the rows that it reads."""
    maker = type(spec.create())
    text = read_doc(maker).text
    return text or block(spec.factory)
