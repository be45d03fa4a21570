"""An adapter in training: attached to the model, saved and loaded without the model, exported for other programs.

peft puts the adapter's layers into the model's own modules, in place. Trainers still call the model of transformers,
with its own forward pass, so nothing else in them changes; the `PeftModel` around it only knows which tensors are the
adapter's.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modelwright.core.api import AdapterSettings, Job, UsageError
from modelwright.core.api.adapters import embedding_rows, grow_embeddings
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from modelwright.core.api.wording import listed

ALL_LINEAR = "all-linear"
# The layers that can have an adapter; models like GPT-2 use Conv1D for a linear layer.
_LINEAR = (nn.Linear, Conv1D)
# peft names tensors from its own two layers around the model.
_PREFIX = "base_model.model."
# Number of a model's layers that an error names.
_NAMED = 12


def adapt(model: Any, job: Job) -> None:
    """Make a loaded model ready for the job: embeddings for every token of the tokenizer, and the job's adapter.

    Args:
        model: as `load_model` gives it; changed in place, before it is moved, wrapped or compiled.
        job: has the number of tokens and the settings of the adapter.

    Raises:
        UsageError: the settings name a layer that the model does not have.
    """
    before = embedding_rows(model)
    grow_embeddings(model, job.vocabulary or 0)
    if job.adapter is None:
        return
    attach(model, job.adapter, seed=job.seed, new_tokens=range(before, embedding_rows(model)))
    # peft has set the path of the base's folder here.
    name, _, commit = (job.hub or "").partition("@")
    config = _config(model)
    config.base_model_name_or_path, config.revision = name or None, commit or None


def is_adapted(model: Any) -> bool:
    """Whether an adapter of the model is trained, instead of the model."""
    return hasattr(model, "peft_config")


def attach(model: Any, settings: AdapterSettings, *, seed: int, new_tokens: Sequence[int] = ()) -> Any:
    """Put a new adapter on a model, in place: everything else in it is frozen.

    The adapter changes nothing at first: A is drawn from `seed`, B is 0.

    Args:
        model: a causal language model of transformers.
        settings: kind, rank, scale, dropout and targets.
        seed: of A's random values.
        new_tokens: tokens that the base does not have. Their rows of the embeddings, and of an output layer with its
            own weights, are trained and saved with the adapter.

    Returns:
        The `PeftModel`; `get_base_model()` is `model`.

    Raises:
        UsageError: a target is not a layer of the model.
    """
    targets = _targets(model, settings.targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.kind == "rslora",
        target_modules=targets,
        trainable_token_indices=_token_rows(model, targets, list(new_tokens)) if new_tokens else None,
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # It warns that Conv1D is transposed, which is intended.
        warnings.filterwarnings("ignore", message=r".*fan_in_fan_out")
        return peft.get_peft_model(model, config)


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The trained tensors, by their names in `model` (the model of transformers): all that a checkpoint needs.

    The tensors are the parameters themselves, not copies. A strategy that splits them gathers them first.
    """
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_adapter_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of `adapter_state` back into a model with an adapter of the same settings.

    Raises:
        ValueError: they belong to another adapter.
    """
    trained = adapter_state(model)
    if {name: value.shape for name, value in trained.items()} != {name: value.shape for name, value in state.items()}:
        raise ValueError("the checkpoint belongs to another adapter")
    for name, value in trained.items():
        value.copy_(state[name])


def export_adapter(model: Any, folder: Path, *, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a model's adapter as peft reads it, without the model, and the model's config.

    Args:
        model: of transformers, with an adapter attached.
        folder: exists.
        state: the tensors of `adapter_state`, if they had to be gathered; may hold other tensors too. Default: those of
            the model as it is here.
    """
    state = adapter_state(model) if state is None else state
    tensors = peft.get_peft_model_state_dict(model, state_dict=dict(state), save_embedding_layers=False)
    safetensors.torch.save_file(
        {f"{_PREFIX}{name}": value.detach().to("cpu", torch.float32).contiguous() for name, value in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    config = _config(model).to_dict() | {"inference_mode": True}
    # Sets have no order, and the same adapter must have the same digest.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
    model.config.save_pretrained(folder)


def _config(model: Any) -> Any:
    """Peft's settings of the attached adapter, which peft also keeps on the model itself."""
    (config,) = model.peft_config.values()
    return config


def _targets(model: Any, requested: str | Sequence[str]) -> list[str]:
    """The shortest unambiguous names of the layers that get an adapter.

    Raises:
        UsageError: the model does not have a requested layer.
    """
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is model.get_input_embeddings().weight
    # An output layer that shares its weights with the embeddings cannot have an adapter of its own.
    found = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _LINEAR) and not (tied and layer is output)
    }
    if requested == ALL_LINEAR:
        wanted = {_short(name) for name, layer in found.items() if layer is not output}
    else:
        wanted = {requested} if isinstance(requested, str) else set(requested)
    unknown = sorted(name for name in wanted if not any(f".{each}".endswith(f".{name}") for each in found))
    if unknown or not wanted:
        named = sorted({_short(name) for name in found})
        what = f"has no layer {unknown[0]!r} that can have an adapter" if unknown else "has no linear layer"
        raise UsageError(
            f"[adapter] targets: the model ({model.config.model_type}) {what} (it has: "
            f'{listed(named, _NAMED) or "none"}; or "{ALL_LINEAR}")'
        )
    return sorted(wanted)


def _short(name: str) -> str:
    """The last part of a layer's name, or the whole name if that part is a number in a list."""
    last = name.rpartition(".")[2]
    return name if last.isdecimal() else last


def _token_rows(model: Any, targets: Sequence[str], tokens: list[int]) -> dict[str, list[int]]:
    """The rows of new tokens, by the layers that have them; a tied output layer shares those of the embeddings."""
    names = {layer: name for name, layer in model.named_modules()}
    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {names[inputs]: tokens}
    if output is None or output.weight is inputs.weight or _short(names[output]) in targets:
        return rows
    if getattr(output, "bias", None) is not None:
        raise UsageError(
            f"[adapter]: {len(tokens)} tokens were added to the base's tokenizer, and its output layer "
            f"{names[output]} has a bias, which peft cannot train for single tokens: remove [adapter], or add the "
            "tokens to the base itself with resize_token_embeddings()"
        )
    return rows | {names[output]: tokens}
