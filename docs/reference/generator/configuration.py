"""configuration.md: every key of a run file and of an evaluation file, from the classes that read them."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NewType, Union, get_args, get_origin

from attrs import NOTHING, Attribute, Factory, frozen, has

from generator.text import block, code, page, plain, read_doc, sentence, table
from modelwright.core.api.components import SPECS, ComponentSpec, EngineSpec
from modelwright.core.config.files import LONGEST
from modelwright.core.config.schema import EvalConfig, RunConfig
from modelwright.core.config.structure import attributes_of
from modelwright.core.plugins import discover

_INTRODUCTION = """
A run file describes how to train a model, or several variants of it. An evaluation file describes which registered
models to grade on which test sets. Both are TOML, or YAML 1.2 with the same keys. Unknown keys are errors.
`modelwright config check FILE` reports every mistake with its line; `modelwright config show FILE` prints the resulting
configuration with all defaults.

Paths are relative to the file that they are written in. Paths in `--set` are relative to the working directory.
"""

_LAYERS = f"""
## Layers

| key | type | meaning |
| --- | --- | --- |
| `extends` | path, or array of paths | Files to build on. They are read first; a chain has at most {LONGEST} files. |
| `variants` | table of tables | `[variants.NAME]`: changes for another model, called `MODEL-NAME`. Run files only. |

Later layers override earlier ones, in this order: the files of `extends`, the file itself, the variant, `--set
KEY=VALUE`. Tables are merged key by key; arrays and single values are replaced. A variant cannot set `name`, `plugins`,
`variants` or `extends`.
"""

_OPTIONS = """
Each format, trainer and metric has its own options. Options of a format belong in `[data.options]` (or in `options` of
a test set), options of a trainer in `[train.options]`, and options of a metric beside its name: `metrics = [{ name =
"exact_match", ignore_case = true }]`, or `exact_match(ignore_case=true)` in `--metric` and in conditions. They are
checked like the rest of the file, as are the options of plugins that you install.
"""

_NAMES = {str: "string", int: "integer", float: "number", bool: "true or false", type(None): ""}
_SPECIAL = {
    "FilePath": "path",
    "ModelSource": "path or address",
    "DatasetSource": "path or ORG/NAME",
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
        *_sections(run),
        "## Evaluation files",
        "An evaluation file is recognized by the key `models` at its top.",
        *_sections([one for one in _tables(EvalConfig) if one not in run]),
        "`[evaluate.generation]` and `[plugins]` are the same as in a run file.",
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


def _sections(tables: Sequence[_Table]) -> Iterator[str]:
    """A section for each table; tables of one class, as those of a cluster's stages, share one."""
    for cls in dict.fromkeys(one.cls for one in tables):
        yield _section([one for one in tables if one.cls is cls])


def _section(alike: Sequence[_Table]) -> str:
    one = alike[0]
    doc = read_doc(one.cls)
    rows = list(_rows(one.cls))
    heading = f"### {', '.join(code(each.header) for each in alike)}" if one.header else "### Top level"
    about = "" if one.header == "" else _about(doc.text)
    return page(heading, about, table(("key", "type", "default", "meaning"), rows))


def _about(text: str) -> str:
    """What a class's docstring says after the name of its table, which the heading has already."""
    return re.sub(r"^`[^`]*`: ", "", text)


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
            meaning = sentence(_about(read_doc(inner).summary))
        refused = _refused(attribute)
        note = f"This version does not support {refused}." if refused else ""
        yield code(key), f"{kind}{bounds}", _default(attribute), f"{meaning} {note}".strip()


def _meanings(cls: type[Any]) -> dict[str, str]:
    """The descriptions of a class's fields, from its docstring and those of its base classes."""
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
        members = get_args(arguments[0]) if get_origin(arguments[0]) in (Union, types.UnionType) else arguments[:1]
        return f"array of {' or '.join(f'{_kind(one)}s' for one in members)}".replace("addresss", "addresses")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {_kind(arguments[1])}s"
    return "table" if kind is Any else _NAMES.get(kind, "table")


def _bounds(validator: Any) -> str:
    """The bounds that attrs' own validators set, such as `, > 0`."""
    found = list(_comparisons(validator))
    return "".join(f", {one}" for one in found)


def _comparisons(validator: Any) -> Iterator[str]:
    for inner in getattr(validator, "_validators", ()):
        yield from _comparisons(inner)
    if hasattr(validator, "validator"):
        yield from _comparisons(validator.validator)
    if hasattr(validator, "compare_op"):
        bound = validator.bound if validator.bound % 1 else int(validator.bound)
        yield code(f"{validator.compare_op} {bound if abs(bound) < 2**31 else '2^63'}")
    if hasattr(validator, "min_length"):
        yield "not empty"


def _refused(attribute: Attribute[Any]) -> str:
    """Which values the validator refuses in this version: it is tried on each."""
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
    """The options of the built-in components; plugins of other packages have pages of their own."""
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
    """The description of the rows that a format reads, from its class."""
    maker = type(spec.create())
    text = read_doc(maker).text
    return text or block(spec.factory)
