"""Which parts of a model get an adapter: its linear layers, and the experts of a mixture, which are 3-D parameters.

A part is named as in `model.named_parameters()`, without the `.weight` of a layer: `model.layers.0.self_attn.q_proj`,
`model.layers.0.mlp.experts.gate_up_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import nn
from transformers.pytorch_utils import Conv1D

from modelwright.core.api import AdapterSettings, UsageError
from modelwright.core.api.wording import closest, either, listed
from modelwright.plugins.trainers.model.weights import numbers_in

ALL_LINEAR = "all-linear"
# The layers that can have an adapter; models like GPT-2 use Conv1D for a linear layer.
_LINEAR = (nn.Linear, Conv1D)
# Convolutions have 3-D weights, too. It is the class of torch's own, which has no public name.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Number of names that a message lists.
_NAMED = 12


@frozen(kw_only=True)
class Targets:
    """What an adapter is put on.

    Attributes:
        layers: full names of the linear layers.
        parameters: full names of the parameters: experts, and the linear layers that peft can only reach so.
        saved: full names of the modules that are trained whole.
    """

    layers: frozenset[str]
    parameters: frozenset[str]
    saved: frozenset[str]

    def for_peft(self, model: Any) -> dict[str, Any]:
        """The arguments of `LoraConfig`, with the last part of a name where it stands for all that have it."""
        modules = [name for name, _ in model.named_modules()]
        parameters = [name for name, _ in model.named_parameters()]
        return {
            "target_modules": _shortened(self.layers, modules, parts=1),
            "target_parameters": _shortened(self.parameters, parameters, parts=2) or None,
            "modules_to_save": _shortened(self.saved, modules, parts=1) or None,
        }


def find_targets(model: Any, settings: AdapterSettings) -> Targets:
    """What the settings name in a model.

    Raises:
        UsageError: a name that the model does not have, or settings that a chosen part cannot have.
    """
    parts = _parts(model)
    output = _name_of(model, model.get_output_embeddings())
    if settings.targets == ALL_LINEAR:
        chosen = parts.keys() - {output}
    else:
        chosen = _named(model, "targets", settings.targets, parts)
    chosen = _in_layers(settings.layers, chosen, parts)
    chosen = chosen - _named(model, "exclude", settings.exclude, parts)
    saved = _saved(model, settings.modules_to_save)
    chosen = {name for name in chosen if not any(_matches(name, each) for each in saved)}
    if not chosen:
        raise UsageError(
            f"[adapter] targets: the model ({model.config.model_type}) has no linear layer that targets, layers and "
            f"exclude leave (it has: {_short_names(parts) or 'none'}): name others"
        )
    layers = {name for name in chosen if isinstance(parts[name], _LINEAR)}
    experts = chosen - layers
    converted = {name for name in layers if _taken_for_experts(model, name)}
    _check_parameters(settings, experts | converted)
    _check_layers(settings, [parts[name] for name in layers])
    return Targets(
        layers=frozenset(layers - converted),
        parameters=frozenset(experts | {f"{name}.weight" for name in converted}),
        saved=frozenset(saved),
    )


def coverage(model: Any) -> dict[str, Any]:
    """How much of which parts an attached adapter trains, for the event `started`.

    Returns:
        `adapter_parameters`: number of trained parameters by the last parts of their target's name. `adapted`: number
        of the base's parameters that have an adapter or are trained whole. `unadapted`: number of the others by name.
    """
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    trained: dict[str, int] = {}
    adapted: set[int] = set()
    originals = {id(each) for name, each in model.named_parameters() if ".original_module." in name}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
            adapted.add(id(weight))
            label = _label(f"{name}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else name)
            own = [each for key, each in layer.named_parameters() if not key.startswith("base_layer.")]
            trained[label] = trained.get(label, 0) + _count(own)
    left: dict[str, int] = {}
    covered = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if ".lora_" not in name:
                label = _label(name.partition(".modules_to_save.")[0].partition(".token_adapter.")[0])
                trained[label] = trained.get(label, 0) + _count([parameter])
        elif id(parameter) in adapted or id(parameter) in originals:
            covered += _count([parameter])
        else:
            label = _label(name.rpartition(".")[0])
            left[label] = left.get(label, 0) + _count([parameter])
    return {"adapter_parameters": trained, "adapted": covered, "unadapted": left}


def _parts(model: Any) -> dict[str, Any]:
    """All that can have an adapter, by name: layers, and the parameters of experts."""
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is model.get_input_embeddings().weight
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        # An output layer that shares its weights with the embeddings cannot have an adapter of its own.
        if isinstance(module, _LINEAR) and not (tied and module is output):
            found[name] = module
        elif not isinstance(module, _CONVOLUTIONS):
            found |= {f"{name}.{key}": value for key, value in _experts(module)}
    return found


def _experts(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The 3-D parameters of a module itself: a matrix for each expert."""
    for key, value in module.named_parameters(recurse=False):
        shape = getattr(value, "ds_shape", value.shape)  # ZeRO-3 leaves an empty tensor
        if len(shape) == 3 and min(shape) > 1:
            yield key, value


def _named(model: Any, key: str, wanted: str | Sequence[str], parts: Mapping[str, Any]) -> set[str]:
    """The parts that a key of the settings names.

    Raises:
        UsageError: an entry that names none of them.
    """
    entries = (wanted,) if isinstance(wanted, str) else wanted
    output = model.get_output_embeddings()
    outputs = [name for name, module in model.named_modules() if module is output and output is not None]
    found: set[str] = set()
    for entry in entries:
        matching = {name for name in parts if _matches(name, entry)}
        # A tied output layer has no adapter anyway.
        if not matching and not (key == "exclude" and any(_matches(name, entry) for name in outputs)):
            raise UsageError(_unknown(model, key, entry, parts))
        found |= matching
    return found


def _matches(name: str, entry: str) -> bool:
    """Whether an entry is a name, a run of parts of a name, or a regular expression for a whole name."""
    if f".{entry}." in f".{name}.":
        return True
    try:
        return re.fullmatch(entry, name) is not None
    except re.error:
        return False


def _unknown(model: Any, key: str, entry: str, parts: Mapping[str, Any]) -> str:
    near = closest(entry.rpartition(".")[2], map(_short, parts))
    meant = f", did you mean {near!r}?" if near else ""
    every = f'; or "{ALL_LINEAR}"' if key == "targets" else ""
    return (
        f"[adapter] {key}: the model ({model.config.model_type}) has no layer {entry!r} that can have an adapter"
        f"{meant} (it has: {_short_names(parts) or 'none'}{every}; or a regular expression for whole names, such as "
        f"{max(parts, default='model.layers.0.self_attn.q_proj')!r})"
    )


def _in_layers(layers: Sequence[int] | None, chosen: Collection[str], parts: Iterable[str]) -> set[str]:
    """The chosen parts that are in these blocks of the model.

    Raises:
        UsageError: the model does not have one of the blocks.
    """
    if layers is None:
        return set(chosen)
    there = {block for block in map(_block, parts) if block is not None}
    missing = sorted(set(layers) - there)
    if missing:
        raise UsageError(
            f"[adapter] layers: the model has no layer {missing[0]} (it has {min(there, default=0)} to "
            f"{max(there, default=0)}): name others"
        )
    return {name for name in chosen if _block(name) in layers}


def _block(name: str) -> int | None:
    """The number of the block that a part belongs to: the first number in its name, as peft reads it."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else None


def _saved(model: Any, wanted: Sequence[str]) -> set[str]:
    """The modules that are trained whole, by their full names.

    Raises:
        UsageError: a name that no module has, or a layer that shares its weights and cannot be trained so.
    """
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    modules = {name: module for name, module in model.named_modules() if name}
    saved: set[str] = set()
    for entry in wanted:
        found = {name for name in modules if f".{name}".endswith(f".{entry}")}
        if not found:
            near = closest(entry.rpartition(".")[2], {_short(name) for name in modules})
            meant = f", did you mean {near!r}?" if near else ""
            raise UsageError(
                f"[adapter] modules_to_save: the model ({model.config.model_type}) has no module {entry!r}{meant}"
            )
        saved |= found
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    names = [_name_of(model, layer) for layer in (inputs, output) if layer is not None]
    if output is None or output.weight is not inputs.weight or not saved.intersection(names):
        return saved
    if _short(names[0]) not in EMBEDDING_LAYER_NAMES:
        raise UsageError(
            f"[adapter] modules_to_save: {names[0]} and {names[1]} share their weights, and peft keeps only layers "
            f"together that are named {either(EMBEDDING_LAYER_NAMES)}: remove them from modules_to_save"
        )
    if names[1] in saved:
        raise UsageError(
            f"[adapter] modules_to_save: {names[1]} shares its weights with {names[0]}: name {_short(names[0])!r} "
            "instead, and both are trained"
        )
    return saved


def _taken_for_experts(model: Any, name: str) -> bool:
    """Whether peft takes the name of a linear layer for that of experts, as files of transformers 4 have it.

    It then adapts the experts and leaves the layer, such as a shared expert's, alone.
    """
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = peft.LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it misses the other half of the experts' matrix
        return True
    return name not in (config.target_modules or ())


def _check_parameters(settings: AdapterSettings, parameters: Collection[str]) -> None:
    """Peft adds an adapter of a parameter to the parameter itself, which leaves no place for some settings.

    Raises:
        UsageError: one of them is set.
    """
    wanted = {"dropout": bool(settings.dropout), "dora": settings.dora, "init": settings.init != "default"}
    for key in (key for key, is_set in wanted.items() if is_set and parameters):
        names = sorted({_label(name) for name in parameters})
        quoted = ", ".join(f'"{name}"' for name in names)
        raise UsageError(
            f"[adapter] {key}: peft does not support it for {listed(names, _NAMED)}, whose adapter it adds to the "
            f"weights themselves: remove {key}, or leave these out with exclude = [{quoted}]"
        )


def _check_layers(settings: AdapterSettings, layers: Sequence[Any]) -> None:
    """DoRA, PiSSA and OLoRA compute with the weights: PiSSA and OLoRA take the adapter's start out of them.

    Raises:
        UsageError: the weights are split, transposed, or have fewer directions than the adapter.
    """
    key = "init" if settings.init != "default" else "dora"
    if (settings.dora or key == "init") and any(hasattr(layer.weight, "ds_id") for layer in layers):
        raise UsageError(
            f"[adapter] {key}: it needs whole matrices, which zero_stage = 3 splits: set zero_stage to 2 or less in "
            f"[train.options], or remove {key}"
        )
    if settings.init == "default":
        return
    if settings.init == "olora" and any(isinstance(layer, Conv1D) for layer in layers):
        raise UsageError('[adapter] init: peft has no "olora" for the transposed layers of this model: set "pissa"')
    smallest = min(min(layer.weight.shape) for layer in layers)
    if settings.rank > smallest:
        raise UsageError(
            f'[adapter] rank: "{settings.init}" starts from the matrices of the model, and one of them has only '
            f'{smallest} directions: set rank to {smallest} or less, or init = "default"'
        )


def _shortened(chosen: Collection[str], names: Iterable[str], *, parts: int) -> list[str]:
    """The last parts of the chosen names, or a whole name where others end in the same way."""
    ending: dict[str, set[str]] = {}
    for name in names:
        ending.setdefault(_last(name, parts), set()).add(name)
    return sorted({_last(name, parts) if ending[_last(name, parts)] <= set(chosen) else name for name in chosen})


def _last(name: str, parts: int) -> str:
    """The last parts of a name, or the whole name if one of them is a number in a list."""
    last = name.split(".")[-parts:]
    return name if any(each.isdecimal() for each in last) else ".".join(last)


def _short(name: str) -> str:
    return _last(name, 1)


def _short_names(parts: Iterable[str]) -> str:
    return listed(sorted(set(map(_short, parts))), _NAMED)


def _label(name: str) -> str:
    """The name of a part for people: its last parts, without what peft puts between them."""
    plain = name.replace(".base_layer", "").removesuffix(".weight")
    return _last(plain, 2) if ".experts." in plain else _short(plain)


def _name_of(model: Any, module: Any) -> str:
    return next((name for name, each in model.named_modules() if each is module), "")


def _count(parameters: Iterable[torch.Tensor]) -> int:
    """How many numbers the parameters have; those that ZeRO-3 has split count whole."""
    return sum(map(numbers_in, parameters))
