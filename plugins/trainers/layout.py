"""How a micro-batch is laid: its sequences below each other, padded to the longest, or all end to end in one.

End to end there is padding at the end only, and little of it, however unlike the lengths are. It takes an attention
that keeps documents apart by their positions: FlashAttention on a GPU, `by_document` on a CPU. Whether a model is the
same with it depends on the rest of its code (windows that are told by masks alone, states that run on), and is asked of
the model itself.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from attrs import define

from modelwright.core.api import ModelwrightError, TokenRow
from modelwright.plugins.trainers.by_document import BY_DOCUMENT
from modelwright.plugins.trainers.forward import SupervisedLogits, attention_of
from modelwright.plugins.trainers.isolation import Computes, check_isolation, same_as_alone
from modelwright.plugins.trainers.ranks import Ranks

# Kinds of layers whose attention is told what it sees by more than the mask.
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@define
class _Float32:
    """The forward pass in float32, whatever the training's precision: differences show there."""

    model: Any
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """None."""
        return contextlib.nullcontext()


def lay_end_to_end(
    strategy: Computes, logits: SupervisedLogits, rows: Sequence[TokenRow], ranks: Ranks, *, asked: str
) -> bool:
    """Find out whether sequences can go through a model end to end, and set its attention so.

    Args:
        strategy: computes the forward pass as in training.
        logits: of its model.
        rows: to try it with, the longest of all among them; the same in every process.
        ranks: the processes, which all do this together.
        asked: the attention that the run asks for.

    Returns:
        Whether they can; where not, the model is as it was.
    """
    model, own = strategy.model, attention_of(strategy.model)
    by_document = own == "sdpa" and asked == "auto" and strategy.device.type == "cpu"
    layers = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or [])
    if (
        not (by_document or "flash" in own)
        or "position_ids" not in inspect.signature(model.forward).parameters
        or layers - _KNOWN_LAYERS
    ):
        return False
    tried = _Float32(model, strategy.device) if by_document else strategy
    # For this nothing has to be compiled.
    with torch.compiler.set_stance("force_eager"):
        same = same_as_alone(tried, logits, rows, attention=BY_DOCUMENT if by_document else own)
        if ranks.any(not (same and _isolates(tried, logits, rows))):
            model.set_attn_implementation(own)
            return False
    return True


def _isolates(strategy: Computes, logits: SupervisedLogits, rows: Sequence[TokenRow]) -> bool:
    try:
        check_isolation(strategy, logits, [rows])
    except ModelwrightError:
        return False
    return True
