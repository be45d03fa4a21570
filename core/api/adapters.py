"""A saved adapter, and how it is applied to its base, in one way for every engine and for merging.

    FOLDER/adapter_config.json           kind, rank, scale and targets, as peft writes and reads them
    FOLDER/adapter_model.safetensors     the adapter's tensors, float32, the rows of tokens that were added, and modules
                                         that were trained whole
    FOLDER/config.json                   the base's, with the vocabulary that the adapter was trained with

The base's weights are elsewhere. peft and torch are imported when they are used.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.files import read_json
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, vocabulary_size
from modelwright.core.api.wording import one_line

# The settings of peft that decide what an adapter computes, and that are read. All others must be at their defaults:
# another value makes another kind of adapter.
_SETTINGS = frozenset(
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
        "trainable_token_indices",
        "fan_in_fan_out",
        "bias",
        "lora_bias",
    }
)
# Settings that change nothing in the computation: where an adapter came from, and how its matrices began.
_ABOUT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "peft_version",
        "revision",
        "task_type",
    }
)
# Starts that leave the base's weights as they are. With others (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA), an adapter that
# was saved without conversion belongs to changed weights, which are not in its files.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def embedding_rows(model: Any) -> int:
    """Number of tokens that a transformers model has embeddings for, also if DeepSpeed has sharded its weights."""
    weight = model.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def grow_embeddings(model: Any, rows: int) -> None:
    """Give a model embeddings, and outputs, for `rows` tokens; one that has as many or more stays as it is.

    A new row is the mean of the old ones: so an untrained token gets an average probability, while a random row can
    begin with a far higher one (J. Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021).
    """
    import torch

    old = embedding_rows(model)
    if rows <= old:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for tensor in () if layer is None else (layer.weight, getattr(layer, "bias", None)):
                if tensor is not None:
                    tensor[old:] = tensor[:old].mean(dim=0)


def apply_adapter(model: Any, folder: Path) -> Any:
    """Apply a saved adapter to its base; the layers of the base are changed in place.

    Args:
        model: the base, a transformers model in any precision. Its embeddings grow if the adapter added tokens.
        folder: the folder of the adapter.

    Returns:
        The `PeftModel`. `get_base_model()` is `model` itself, which computes with the adapter from here on.

    Raises:
        ModelwrightError: the adapter is damaged, not supported, or made for another base.
    """
    import peft
    import torch
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    settings = _settings(folder)
    tensors = _tensors(folder)
    grow_embeddings(model, _vocabulary(folder))
    try:
        # The matrices drawn here are replaced; the global random state stays as it is.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # It warns that two kinds of targets are given, which is how experts and other layers are.
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        # The experts of transformers 4 have tensors of their own, those of 5 share one.
        tensors = convert_peft_adapter_state_dict_for_transformers(adapted, adapted.peft_config["default"], tensors)
    except (ValueError, TypeError, IndexError) as error:
        raise ModelwrightError(f"{folder}: this is an adapter for another base: {one_line(error):.200}") from error
    _check_same(folder, peft.get_peft_model_state_dict(adapted, save_embedding_layers=False), tensors)
    peft.set_peft_model_state_dict(adapted, tensors)
    for parameter in adapted.parameters():
        parameter.requires_grad = False
    return adapted.eval()


def _settings(folder: Path) -> dict[str, Any]:
    """What the adapter's config says, as arguments of `LoraConfig`."""
    import peft

    try:
        config = read_json(folder / ADAPTER_CONFIG)
    except ValueError as error:
        raise ModelwrightError(f"{folder}: {ADAPTER_CONFIG} is not JSON: {error}; copy the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not config.keys() >= {"r", "lora_alpha"}:
        raise ModelwrightError(f"{folder}: {ADAPTER_CONFIG} does not describe a LoRA adapter, the only supported kind")
    usual = peft.LoraConfig().to_dict()
    if config.get("init_lora_weights", True) not in _STARTS:
        raise ModelwrightError(
            f"{folder}: {ADAPTER_CONFIG} says init_lora_weights = {config['init_lora_weights']!r:.60}: it was trained "
            "on weights changed by this, which it does not contain: save it as plain LoRA (peft's save_pretrained with "
            "path_initial_model_for_weight_conversion), or merge it with peft and import the result"
        )
    for key, value in config.items():
        # Newer versions write what they added, mostly turned off.
        if key not in usual and value:
            raise ModelwrightError(
                f"{folder}: {ADAPTER_CONFIG} says {key} = {value!r:.60}, which peft {peft.__version__} does not know "
                f"(it was written by {config.get('peft_version') or 'another version'}): pip install --upgrade peft"
            )
        if key in usual.keys() - _SETTINGS - _ABOUT and value != usual[key]:
            raise ModelwrightError(
                f"{folder}: {ADAPTER_CONFIG} says {key} = {value!r:.60}, which is not supported: merge the "
                "adapter into its base with peft, and import the result"
            )
    return {key: value for key, value in config.items() if key in _SETTINGS}


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(folder / ADAPTER_WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise ModelwrightError(
            f"{folder}: cannot read {ADAPTER_WEIGHTS}: {one_line(error):.200}; copy the adapter again"
        ) from error


def _vocabulary(folder: Path) -> int:
    """How many tokens the adapter was trained with; 0 where nothing tells."""
    config = read_json(folder / CONFIG)
    return (vocabulary_size(config) if isinstance(config, dict) else None) or 0


def _check_same(folder: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Peft passes over tensors that are missing, and over those for layers that the base does not have.

    Raises:
        ModelwrightError: a name or a shape differs.
    """
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (expected, found)]
    wrong = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    if wrong:
        here, there = (shape.get(wrong[0]) or "none" for shape in shapes)
        raise ModelwrightError(
            f"{folder}: this is an adapter for another base: for {wrong[0]} the base takes the shape {here}, and the "
            f"adapter has {there}"
        )
