"""Attention on a CPU among documents that stand end to end in one sequence: each document's by itself.

transformers would make a mask of length times length for them. Here nothing is masked and nothing is computed that a
mask would hide. The documents are found by their positions, which begin anew in each.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BY_DOCUMENT = "sdpa_by_document"


def by_document(
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
    """As an attention function of transformers; `query`, `key`, `value`: `[1, heads, length, width]`.

    It computes in float32 within autocast, too: the backward pass of PyTorch's kernel for CPUs takes four times as long
    in bfloat16, and there is nothing else in this attention that bfloat16 would make faster.

    Where a model has a mask of its own, gives no positions, or adds numbers to scores by places in the whole sequence,
    that sequence is taken for one document: other logits come out than those of each document alone, by which such a
    model is known.
    """
    length = query.shape[2]
    whole = attention_mask is not None or position_bias is not None or key.shape[2] != length
    if whole or position_ids is None or position_ids.shape != (1, length):
        more["position_bias"] = position_bias
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return found, None
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    lengths = [end - start for start, end in itertools.pairwise([*starts, length])]
    parts = []
    with torch.autocast("cpu", enabled=False):
        for part in zip(*(torch.split(each.float(), lengths, dim=2) for each in (query, key, value)), strict=True):
            mask = None
            if sliding_window is not None and part[0].shape[2] > sliding_window:
                mask = _window(part[0].shape[2], sliding_window)
            parts.append(sdpa_attention_forward(module, *part, mask, **more)[0])
    return torch.cat(parts, 1).to(query.dtype), None


def _window(length: int, width: int) -> torch.Tensor:
    """What each token sees: itself and the `width - 1` before it; bool `[1, 1, length, length]`."""
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril_().triu_(1 - width)


# transformers makes no mask where there is none of the same name. This is not compiled: lengths are known at run time.
AttentionInterface.register(BY_DOCUMENT, torch.compiler.disable(by_document))  # type: ignore[no-untyped-call]
