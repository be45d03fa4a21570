"""How a model attends, so that no document of a sequence sees another.

transformers finds the documents of a sequence by their positions, which restart in each, and masks attention between
them, but only if it gets neither a mask nor a cache. A mask of ones, or the cache that models make by default, turns
that off silently: every document then attends to the ones before it. So a trainer calls its model with `model_inputs`.

On a CPU, transformers would make a mask of length times length for documents laid end to end. `document_attention`
computes each document by itself instead: nothing is masked, and nothing is computed that a mask would hide.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AttentionInterface, modeling_rope_utils
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modelwright.core.api import UsageError
from modelwright.core.api.wording import one_line
from modelwright.plugins.trainers.batches.micro_batches import MicroBatch

DOCUMENT_ATTENTION = "sdpa_by_document"


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    position_ids: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each document, as an attention function of transformers on a CPU.

    It computes in float32 even under autocast: the backward pass of PyTorch's CPU kernel takes four times as long in
    bfloat16, and nothing else in this attention would gain by it.

    If a model has a mask of its own, gives no positions, or adds a bias by the place in the whole sequence, the
    sequence is treated as one document. The logits then differ from those of each document alone, and `isolation`
    rejects this attention for the model.

    Args:
        module: the attention layer.
        query: `[1, heads, length, width]`.
        key: `[1, key heads, length, width]`.
        value: `[1, key heads, length, width]`.
        attention_mask: of the model itself, if it made one.
        position_ids: int64 `[1, length]`, each token's place in its document.
        position_bias: what the model adds to the scores, if anything.
        sliding_window: how many tokens each token sees, itself included; None for all before it.
        more: passed on to the attention of transformers.

    Returns:
        The output `[1, length, heads, width]`, and None in place of attention weights.
    """
    length = query.shape[2]
    whole = attention_mask is not None or position_bias is not None or key.shape[2] != length
    if whole or position_ids is None or position_ids.shape != (1, length):
        more["position_bias"] = position_bias
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return found, None
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    lengths = [end - start for start, end in itertools.pairwise([*starts, length])]
    outputs = []
    with torch.autocast("cpu", enabled=False):
        for document in zip(*(torch.split(each.float(), lengths, dim=2) for each in (query, key, value)), strict=True):
            mask = None
            if sliding_window is not None and document[0].shape[2] > sliding_window:
                mask = _window(document[0].shape[2], sliding_window)
            outputs.append(sdpa_attention_forward(module, *document, mask, **more)[0])
    return torch.cat(outputs, 1).to(query.dtype), None


def _window(length: int, width: int) -> torch.Tensor:
    """The mask by which each token sees itself and the `width - 1` before it: bool `[1, 1, length, length]`."""
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril_().triu_(1 - width)


# transformers makes no mask for an attention that has no mask function of the same name. This one is not compiled,
# because the lengths are known only at run time.
AttentionInterface.register(DOCUMENT_ATTENTION, torch.compiler.disable(document_attention))  # type: ignore[no-untyped-call]


def flex_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **more: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """FlexAttention as transformers calls it, in the precision of autocast if that is on, like PyTorch's own attention.

    Autocast leaves it alone: under float32 weights, rotary embeddings make queries and keys float32 and values stay
    bfloat16, which torch 2.8 to 2.10 refuse, and later versions compute in float32.

    Args:
        module: the attention layer.
        query: `[sequences, heads, length, width]`.
        key: `[sequences, key heads, length, width]`.
        value: `[sequences, key heads, length, width]`.
        mask: the block mask of transformers.
        more: passed on.
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (each.to(dtype) for each in (query, key, value))
    found: tuple[torch.Tensor, torch.Tensor | None] = flex_attention_forward(module, query, key, value, mask, **more)
    return found


# In place of its own, under the name by which it makes the mask.
AttentionInterface.register("flex_attention", flex_attention)


def attention_of(model: Any) -> str:
    """The attention implementation that a model uses."""
    return str(model.config._attn_implementation)  # noqa: SLF001 (transformers has no public name for it)


def model_inputs(model: Any, batch: MicroBatch) -> dict[str, torch.Tensor | None]:
    """The arguments for a model, besides `use_cache=False`, by which no document of a micro-batch sees another."""
    if batch.position_ids is None:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    input_ids, position_ids = batch.input_ids, batch.position_ids
    attention = attention_of(model)
    if "flash" in attention or attention == DOCUMENT_ATTENTION:
        # These look for documents only in a batch of one sequence. Padding counts as a document, so the sequences can
        # be laid end to end.
        input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
    return {"input_ids": input_ids, "attention_mask": None, "position_ids": position_ids}


def stretch_rotary_positions(config: Any, scaling: Mapping[str, Any]) -> None:
    """Stretch the rotary positions in a config, and its context by the same factor.

    Scaling that the config already has is replaced: the factor is of the context that the model was first trained with.

    Args:
        config: of the language model, from transformers.
        scaling: as `Job.rope_scaling`.

    Raises:
        UsageError: the model has no such positions, one kind for each layer, or transformers does not accept them.
    """
    before = getattr(config, "rope_parameters", None)
    if not before or not isinstance(before.get("rope_type"), str):
        which = "one kind of rotary positions for each layer" if before else "no rotary positions"
        raise UsageError(f"[model] rope_scaling: this model ({config.model_type}) has {which}: remove the table")
    original = before.get("original_max_position_embeddings") or config.max_position_embeddings
    kept = {key: before[key] for key in ("rope_theta", "partial_rotary_factor") if before.get(key) is not None}
    parameters = {"original_max_position_embeddings": original, **kept, **scaling}
    original = parameters["original_max_position_embeddings"]
    if parameters["rope_type"] == "linear":
        del parameters["original_max_position_embeddings"]  # is not one of its settings
    config.rope_parameters = parameters
    config.max_position_embeddings = int(original * parameters["factor"])
    for problem in _problems_of_rope(config):
        raise UsageError(f"[model] rope_scaling: {problem}")


def _problems_of_rope(config: Any) -> list[str]:
    """What transformers says of a config's rotary positions; it only warns of most mistakes."""
    said: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        said.append(one_line(record.getMessage()))
        return False

    logger = logging.getLogger(modeling_rope_utils.__name__)
    level = logger.level
    logger.addFilter(note)
    logger.setLevel(logging.WARNING)
    try:
        config.validate_rope()
    except (KeyError, ValueError) as error:
        said.append(one_line(str(error.args[0])))
    finally:
        logger.removeFilter(note)
        logger.setLevel(level)
    return said
