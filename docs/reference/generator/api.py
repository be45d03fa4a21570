"""plugins.md, records.md and client.md: the Python that others write against, from its classes and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, get_args

from attrs import NOTHING, fields, has

from generator.text import block, code, page, read_doc, sentence, table
from modelwright.core import api
from modelwright.core.api import components, errors, hooks
from modelwright.core.testing import adapter, engine, registry, trainer
from modelwright.grpc_server import client

# A longer signature is written with one parameter a line.
LINE = 88

_HOOKS = {
    "modelwright_formats": (api.FormatSpec, api.Format),
    "modelwright_metrics": (api.MetricSpec, api.Metric),
    "modelwright_trainers": (api.TrainerSpec, api.Trainer),
    "modelwright_registries": (api.RegistrySpec, api.Registry),
    "modelwright_engines": (api.EngineSpec, api.Engine),
}

_PLUGINS = """
A plugin is a package with an entry point in the group `modelwright`. Its module implements any of five hooks, functions
marked with `hookimpl`. Each hook yields descriptors. Each descriptor names a factory, which is imported on first use
and called with the component's options. Everything here is imported from `modelwright`.
[How to write one](../howto/own-plugin.md).
"""

_RECORDS = """
The values that pass between the stages of a run. All are frozen; plugins import them from `modelwright`. Examples are
stored as JSONL, one per line, as `Example.to_row` writes them.
"""

_CLIENT = """
`from modelwright import Client, AsyncClient`; the records are in `modelwright.grpc_server.client`. The client
needs only grpcio and protobuf, not the packages that run models. [How to serve models](../howto/serving.md).
"""

_GROUPS: dict[str, tuple[Any, ...]] = {
    "Data": (api.Message, api.Example, api.TokenFolder, api.TokenRow),
    "Grading": (api.Output, api.Score, api.Figure),
    "Training": (api.Job, api.TrainSettings, api.AdapterSettings, api.Trained),
    "Devices": (api.Accelerators,),
    "Memory": (api.ModelShape, api.MemorySettings, api.TrainingMemory, api.MachineMemory),
    "Generating": (api.GenerationRequest, api.Sampling, api.Delta, api.Answer),
    "Registry": (api.NewModel, api.ModelVersion, api.ModelFile, api.Alias, api.RegistryEvent, api.Collected),
}

_HELPERS: dict[str, tuple[Any, ...]] = {
    "Figures": (api.wilson, api.wilson_mean),
    "Answers and thinking": (api.last_boxed, api.after_hashes, api.split_thinking, api.ThinkingSplitter),
    "Training": (api.checkpoint_bytes, api.check_checkpoint_room),
    "Devices": (
        api.accelerators,
        api.open_device,
        api.try_device,
        api.described,
        api.device_name,
        api.has_bfloat16,
    ),
    "Memory": (api.training_memory, api.reading_memory, api.machine_memory),
    "Model folders": (api.context_length, api.vocabulary_size, api.has_weights, api.other_weights),
    "Adapters": (api.apply_adapter, api.embedding_rows, api.grow_embeddings),
    "Registries": (api.scan_model, api.model_digest, api.check_alias, api.check_tags, api.is_text),
    "Messages": (api.one_line, api.first_line, api.listed, api.either, api.closest),
    "Files (`from modelwright import files`)": tuple(
        getattr(api.files, name) for name in api.files.__all__ if callable(getattr(api.files, name))
    ),
}

_CONSTANTS = {
    "API_VERSION": "The version of this contract, for `ComponentSpec.api`.",
    "THINK_OPEN": "Before a model's thinking.",
    "THINK_CLOSE": "After it.",
    "HASHES": "Before the answer in GSM8K's solutions.",
    "BOX": "Before the answer in solutions written in LaTeX; the answer is in braces.",
    "ADAPTER_CONFIG": "File of an adapter's settings, as peft names it.",
    "ADAPTER_WEIGHTS": "File of an adapter's tensors.",
    "DEVICE": "Matches a device as one writes it.",
    "OF_BITSANDBYTES": "Optimizers that the package bitsandbytes has.",
    "OPTIMIZER_STATES": "Bytes of each optimizer's states for a trained weight.",
    "files.TEMPORARY": "First characters of the name of a file or folder that is not finished.",
}

_VALUES = {
    "Role": "Who wrote a message.",
    "Finish": "Why an answer ended.",
    "Verdict": "A grade in a word.",
    "Quantization": "What the linear layers under an adapter are held in.",
}

_CLIENT_RECORDS = (
    client.SamplingOptions,
    client.Generation,
    client.Served,
    client.Usage,
    client.Part,
    client.Tokens,
    client.Model,
    client.Alias,
    client.Snapshot,
    client.Gone,
)


def plugins() -> str:
    """plugins.md."""
    contracts = {
        "Engines": (engine, engine.EngineContract),
        "Registries": (registry, registry.RegistryContract),
        "Trainers": (trainer, trainer.TrainerContract),
        "Trainers of adapters": (adapter, adapter.AdapterContract),
    }
    return page(
        "# Plugins",
        _PLUGINS,
        "## Descriptors",
        f"Every descriptor is a {code('ComponentSpec')}.",
        read_doc(components.ComponentSpec).text,
        _attributes(components.ComponentSpec),
        *(_hook(name, spec, protocol) for name, (spec, protocol) in _HOOKS.items()),
        "## Contract suites",
        "Test classes in `modelwright.core.testing`. Inherit one in your own tests and run pytest.",
        *(_contract(name, module, suite) for name, (module, suite) in contracts.items()),
        "## Helpers",
        "Everything here is in `modelwright`; functions for files are in its module `files`.",
        *(page(f"### {title}", *(_described(one, level=4) for one in helpers)) for title, helpers in _HELPERS.items()),
        "### Constants",
        table(("name", "value", "meaning"), list(_constants())),
        "### Errors",
        f"{code('ModelwrightError')} and its kinds are in [the records](records.md#errors).",
    )


def _constants() -> Iterator[tuple[str, str, str]]:
    for name, meaning in _CONSTANTS.items():
        value = api.files.TEMPORARY if name == "files.TEMPORARY" else getattr(api, name)
        yield code(name), code(repr(value)), meaning
    for name, meaning in _VALUES.items():
        yield code(name), " or ".join(code(repr(value)) for value in get_args(getattr(api, name))), meaning


def _hook(name: str, spec: type[Any], protocol: type[Any]) -> str:
    own = [one.name for one in fields(spec) if one.name not in {each.name for each in fields(components.ComponentSpec)}]
    rows = list(_attribute_rows(spec, only=own))
    doc = read_doc(getattr(hooks, name))
    return page(
        f"## {code(name)}",
        f"{doc.text} It yields {code(spec.__name__)}.",
        block(doc.example, "python"),
        f"### {code(spec.__name__)}",
        read_doc(spec).text,
        table(("attribute", "default", "meaning"), rows) if rows else "",
        f"### {code(protocol.__name__)}",
        f"What the factory makes. {read_doc(protocol).text}",
        *(_function(method, level=4) for method in _methods(protocol)),
    )


def _contract(name: str, module: Any, suite: type[Any]) -> str:
    text = inspect.getdoc(module) or ""
    first, _, rest = text.partition("\n")
    sample, _, note = rest.strip("\n").rpartition("\n\n")
    if note.startswith(" ") or not sample:
        sample, note = rest, ""
    tests = [(code(key), read_doc(value).summary) for key, value in _tests(suite)]
    return page(
        f"### {name}",
        first,
        block(inspect.cleandoc("\n" + sample), "python"),
        note,
        table(("test", "what it checks"), tests),
    )


def _tests(suite: type[Any]) -> Iterator[tuple[str, Any]]:
    for cls in reversed(suite.__mro__):
        yield from ((key, value) for key, value in vars(cls).items() if key.startswith("test_"))


def records() -> str:
    """records.md."""
    groups = [page(f"## {title}", *(_described(one) for one in things)) for title, things in _GROUPS.items()]
    listed = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, Exception)]
    rows = [
        (code(one.__name__), str(getattr(one, "exit_code", "")), read_doc(one).summary)
        for one in listed
        if one.__name__ in api.__all__
    ]
    return page("# Records", _RECORDS, *groups, "## Errors", table(("error", "exit code", "meaning"), rows))


def clients() -> str:
    """client.md."""
    streams = (client.Stream, client.Watch, client.AsyncStream, client.AsyncWatch)
    return page(
        "# Python client",
        _CLIENT,
        _class(client.Client),
        _class(client.AsyncClient, methods=("close",)),
        "## Streams",
        *(_class(one, level=3) for one in streams),
        "## Records",
        *(_described(one) for one in _CLIENT_RECORDS),
        "## Errors",
        _described(client.ServerError),
    )


def _class(cls: type[Any], *, level: int = 2, methods: Iterable[str] | None = None) -> str:
    doc = read_doc(cls)
    shown = [one for one in _methods(cls) if methods is None or one.__name__ in methods]
    return page(
        f"{'#' * level} {code(cls.__name__)}",
        block(f"{cls.__name__}{_signature(cls)}", "python"),
        doc.text,
        _entries(doc.entries.get("Args", {}), "argument"),
        _entries(doc.entries.get("Raises", {}), "raises"),
        *(_function(method, level=level + 1) for method in shown),
    )


def _described(thing: Any, *, level: int = 3) -> str:
    if inspect.isfunction(thing):
        return _function(thing, level=level)
    doc = read_doc(thing)
    methods = [one for one in _methods(thing) if not one.__name__.startswith("problems")]
    return page(
        f"{'#' * level} {code(thing.__name__)}",
        doc.text,
        _attributes(thing),
        *(_function(method, level=level + 1) for method in methods),
    )


def _methods(cls: type[Any]) -> Iterator[Any]:
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            made = getattr(value, "fget", getattr(value, "__func__", value))
            if not name.startswith("_") and inspect.isfunction(made) and base.__module__.startswith("modelwright"):
                yield made


def _function(function: Any, *, level: int) -> str:
    doc = read_doc(function)
    entries = [
        _entries(doc.entries.get("Args", {}), "argument"),
        _entries(doc.entries.get("Raises", {}), "raises"),
    ]
    begin = "async " if inspect.iscoroutinefunction(function) else ""
    signature = block(f"{begin}{function.__name__}{_signature(function)}", "python")
    return page(f"{'#' * level} {code(function.__name__)}", signature, doc.text, *entries)


def _entries(entries: Mapping[str, str], kind: str) -> str:
    return table((kind, "meaning"), [(code(name), sentence(text)) for name, text in entries.items()]) if entries else ""


def _signature(function: Any) -> str:
    """As it is called: without self, annotations as they are written."""
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    parameters = [one if isinstance(one, str) else _parameter(one) for one in _starred(kept)]
    gives = "" if inspect.isclass(function) else f" -> {_annotation(signature.return_annotation)}"
    text = f"({', '.join(parameters)}){gives}"
    if len(text) <= LINE:
        return text
    return "".join(["(\n", *(f"    {one},\n" for one in parameters), f"){gives}"])


def _starred(parameters: list[inspect.Parameter]) -> list[inspect.Parameter | str]:
    made: list[inspect.Parameter | str] = []
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and "*" not in made:
            made.append("*")
        made.append(one)
    return made


def _parameter(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    value = one.default.__name__ if isinstance(one.default, type) else repr(one.default)
    default = "" if one.default is one.empty else f" = {value}"
    return f"{stars}{one.name}: {_annotation(one.annotation)}{default}"


def _annotation(annotation: Any) -> str:
    """As it is written, without the names of modules."""
    return re.sub(r"(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", str(annotation))


def _attributes(cls: type[Any]) -> str:
    rows = list(_attribute_rows(cls))
    return table(("attribute", "default", "meaning"), rows) if rows else ""


def _attribute_rows(cls: type[Any], *, only: Iterable[str] | None = None) -> Iterator[tuple[str, str, str]]:
    meanings = read_doc(cls).entries.get("Attributes", {})
    defaults = dict(_defaults(cls)) or dict.fromkeys(meanings, "")
    for name, default in defaults.items():
        if (only is None or name in only) and not name.startswith("_"):
            yield code(name), default, sentence(meanings.get(name, ""))


def _defaults(cls: type[Any]) -> Iterator[tuple[str, str]]:
    if has(cls):
        for one in fields(cls):
            yield one.name, _default(one.default, NOTHING)
    elif is_dataclass(cls):
        for each in dataclass_fields(cls):
            yield each.name, _default(each.default, MISSING)


def _default(value: Any, missing: Any) -> str:
    if value is missing:
        return ""
    if hasattr(value, "factory"):
        return code("{}") if value.factory is dict else "made of the others" if value.takes_self else ""
    return code(value.__name__) if isinstance(value, type) else code(repr(value))
