"""An adapter in training: attached to the model, saved and loaded without the model, exported for other programs.

peft puts the adapter's layers into the model's own modules, in place. Trainers still call the model of transformers,
with its own forward pass, so nothing else in them changes; the `PeftModel` around it only knows which tensors are the
adapter's. Importing peft takes seconds, so that only what has an adapter does.
"""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from attrs import frozen
from torch import Tensor

from modelwright.core.api import AdapterSettings, Job, UsageError
from modelwright.core.api.adapters import embedding_rows, grow_embeddings
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from modelwright.core.api.wording import one_line
from modelwright.plugins.trainers.model.targets import Targets, find_targets
from modelwright.plugins.trainers.model.weights import train_in_float32

# peft names tensors from its own two layers around the model.
_PREFIX = "base_model.model."


@frozen(kw_only=True)
class Attached:
    """What a training must know of the adapter that is attached to its model, as `model.attached`.

    Attributes:
        lora_plus: the learning rate of B as a multiple of A's.
        start: A and B before the first step, by their names in peft's file, where `init` took their product out of the
            model's weights; else empty.
    """

    lora_plus: float
    start: Mapping[str, Tensor]


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

    The adapter changes nothing at first: A is drawn from `seed`, B is 0; or with another `init`, the weights are less
    by what the adapter adds to them.

    Args:
        model: a causal language model of transformers.
        settings: the table `[adapter]`.
        seed: of A's random values.
        new_tokens: tokens that the base does not have. Their rows of the embeddings, and of an output layer with its
            own weights, are trained and saved with the adapter.

    Returns:
        The `PeftModel`; `get_base_model()` is `model`.

    Raises:
        UsageError: a target is not a layer of the model, or cannot have an adapter with these settings.
    """
    import peft

    targets = find_targets(model, settings)
    # A model without values has no matrices to start from.
    starts = settings.init != "default" and not any(parameter.is_meta for parameter in model.parameters())
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.kind == "rslora",
        use_dora=settings.dora,
        init_lora_weights=settings.init if starts else True,
        ensure_weight_tying=_tied(model) and bool(targets.saved & _embeddings(model)),
        trainable_token_indices=_token_rows(model, targets, list(new_tokens)) if new_tokens else None,
        **targets.for_peft(model),
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # It warns that Conv1D is transposed, and of two kinds of targets at once, which are intended.
        warnings.simplefilter("ignore")
        try:
            adapted = peft.get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            # Such as "[PEFT:LORA] Module 'out_proj' is incompatible with Mamba-based models. Incompatible modules: …".
            reason = one_line(error).rpartition("] ")[2].partition(". ")[0]
            named = re.search(r"Module '(\w+)'", reason)
            example = f', such as exclude = ["{named[1]}"]' if named else ""
            raise UsageError(
                f"[adapter] targets: peft cannot adapt this model ({model.config.model_type}): {reason:.200}: leave "
                f"the layer out with exclude{example}, or name others in targets"
            ) from error
    train_in_float32(model)
    model.attached = Attached(
        lora_plus=settings.lora_plus,
        start=_matrices(model) if starts else {},
    )
    return adapted


def learning_rate_factor(model: Any, name: str) -> float:
    """By how much a parameter's learning rate is multiplied: B's by `lora_plus`, if there is an adapter."""
    return model.attached.lora_plus if is_adapted(model) and ".lora_B." in name else 1.0


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
    import peft

    state = _with_tied(model) if state is None else state
    tensors = peft.get_peft_model_state_dict(model, state_dict=dict(state), save_embedding_layers=False)
    config = _config(model).to_dict() | {"inference_mode": True}
    if model.attached.start:
        tensors, config = _on_the_unchanged_base(tensors, config, model.attached.start)
    safetensors.torch.save_file(
        # Clones, since safetensors refuses tied modules, which are one tensor.
        {f"{_PREFIX}{name}": value.detach().to("cpu", torch.float32).clone() for name, value in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    # Sets have no order, and the same adapter must have the same digest.
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
    own = copy.copy(model.config)
    # The adapter belongs to the base as it was.
    if hasattr(own, "quantization_config"):
        del own.quantization_config
    own.save_pretrained(folder)


def _on_the_unchanged_base(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], start: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of the plain LoRA that computes, on the base as it was, what was trained on a changed one.

    In training a layer is W - s·B₀A₀ + s·BA. That is W + s·[B, -B₀][A; A₀], an adapter of twice the rank; peft's
    `subtract_mutated_init` does the same for a model that it saves itself.
    """
    plain = dict(tensors)
    for name, before in start.items():
        after = plain[name].to("cpu")
        plain[name] = torch.cat([after, before]) if ".lora_A." in name else torch.cat([after, -before], dim=1)
    # The scale stays the same: alpha / rank, or alpha / sqrt(rank).
    grown = math.sqrt(2) if config["use_rslora"] else 2
    return plain, {
        **config,
        "r": 2 * config["r"],
        "lora_alpha": grown * config["lora_alpha"],
        "init_lora_weights": True,
    }


def _matrices(model: Any) -> dict[str, Tensor]:
    """Copies of A and B of every layer, by their names in peft's file."""
    import peft

    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: each.detach().clone() for name, each in tensors.items() if ".lora_A." in name or ".lora_B." in name}


def _config(model: Any) -> Any:
    """Peft's settings of the attached adapter, which peft also keeps on the model itself."""
    (config,) = model.peft_config.values()
    return config


def _with_tied(model: Any) -> dict[str, Tensor]:
    """The trained tensors with those that are tied to one of them, which peft's file has twice."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }


def _tied(model: Any) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _embeddings(model: Any) -> set[str]:
    """The names of the embeddings and of the output layer."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name for name, module in model.named_modules() if any(module is each for each in layers)}


def _token_rows(model: Any, targets: Targets, tokens: list[int]) -> dict[str, list[int]] | None:
    """The rows of new tokens, by the layers that have them; a tied output layer shares those of the embeddings.

    A layer that is trained anyway trains its new rows, too.
    """
    names = {layer: name for name, layer in model.named_modules()}
    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {names[layer]: tokens for layer in (inputs, *(() if _tied(model) or output is None else (output,)))}
    rows = {name: each for name, each in rows.items() if name not in targets.layers | targets.saved}
    if output is not None and names[output] in rows and getattr(output, "bias", None) is not None:
        raise UsageError(
            f"[adapter]: {len(tokens)} tokens were added to the base's tokenizer, and its output layer "
            f"{names[output]} has a bias, which peft cannot train for single tokens: remove [adapter], or add the "
            "tokens to the base itself with resize_token_embeddings()"
        )
    return rows or None
