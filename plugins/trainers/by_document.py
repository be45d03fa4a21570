"""Attention on a CPU among documents that stand end to end in one sequence: each document's by itself.

transformers would make a mask of length times length for them. Here nothing is masked and nothing is computed that a
mask would hide. The documents are found by their positions, which begin anew in each.
"""

from __future__ import annotations

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
    _mask: None,
    *,
    position_ids: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As an attention function of transformers; `query`, `key`, `value`: `[1, heads, length, width]`.

    It computes in float32 within autocast, too: the backward pass of PyTorch's kernel for CPUs takes four times as long
    in bfloat16, and there is nothing else in this attention that bfloat16 would make faster.

    Where a model gives no positions, or adds numbers to scores by places in the whole sequence, that sequence is taken
    for one document: other logits come out than those of each document alone, by which such a model is known.
    """
    length = query.shape[2]
    starts = [0]
    if position_ids is not None and position_ids.shape == (1, length) and position_bias is None:
        starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], length]
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    found = []
    with torch.autocast("cpu", enabled=False):
        parts = zip(*(torch.split(each.float(), lengths, dim=2) for each in (query, key, value)), strict=True)
        for part in parts:
            mask = None
            if sliding_window is not None and part[0].shape[2] > sliding_window:
                mask = _window(part[0].shape[2], sliding_window)
            found.append(sdpa_attention_forward(module, *part, mask, position_bias=position_bias, **more)[0])
    return torch.cat(found, 1).to(query.dtype), None


def _window(length: int, width: int) -> torch.Tensor:
    """What each token sees: itself and the `width - 1` before it; bool `[1, 1, length, length]`."""
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril_().triu_(1 - width)


# transformers makes no mask where there is none of the same name. This is not compiled: lengths are known at run time.
AttentionInterface.register(BY_DOCUMENT, torch.compiler.disable(by_document))  # type: ignore[no-untyped-call]
