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
from transformers import PreTrainedModel

from modelwright.core.api import TokenRow
from modelwright.plugins.trainers.batches.document_attention import BY_DOCUMENT
from modelwright.plugins.trainers.batches.isolation import Computes, same_as_alone
from modelwright.plugins.trainers.model.forward import SupervisedLogits, attention_of
from modelwright.plugins.trainers.ranks import Ranks

# Kinds of layers that see all, or a window that their attention is told. What others see may stand in a mask alone.
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@define
class _WithoutAutocast:
    """The forward pass in the precision of the weights: where they are float32, small differences show."""

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
    if not (by_document or "flash" in own) or not _may(model, rows):
        return False
    tried = _WithoutAutocast(model, strategy.device) if by_document else strategy
    # For this nothing has to be compiled.
    with torch.compiler.set_stance("force_eager"):
        same = same_as_alone(tried, logits, rows, attention=BY_DOCUMENT if by_document else own)
    if ranks.any(not same):
        if attention_of(model) != own:
            model.set_attn_implementation(own)
        return False
    return True


def _may(model: Any, rows: Sequence[TokenRow]) -> bool:
    """Whether trying a model tells enough."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    # The parts of a composite one may have attentions of their own, which could not be set for all at once.
    if len({attention_of(part) for part in model.modules() if isinstance(part, PreTrainedModel)}) != 1:
        return False
    text = model.config.get_text_config(decoder=True)
    if set(getattr(text, "layer_types", None) or []) - _KNOWN_LAYERS:
        return False
    # A window that is lost may be lost in the rounding of weights that are not float32.
    window = getattr(text, "sliding_window", None)
    windowed = isinstance(window, int) and window < max(len(row.input_ids) for row in rows)
    return not windowed or model.dtype == torch.float32
