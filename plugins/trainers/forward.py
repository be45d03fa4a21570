"""The one place where a trainer calls its model: documents that share a sequence are kept apart here, and only here.

transformers finds the documents of a sequence by their positions, which begin anew in each, and masks attention between
them, but only where it is given no mask and no cache. A mask of ones, or the cache that models make by default,
switches that off without a word, and every document attends to those before it.
"""

from __future__ import annotations

from typing import Any

import torch

from modelwright.plugins.trainers.data import MicroBatch


class SupervisedLogits:
    """Makes a model compute logits at chosen positions only: those of a whole vocabulary are what memory goes to first.

    The positions are chosen before the output layer, by a hook on it, so that whatever a model does to its logits
    afterwards (scaling, capping) still happens.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._positions: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._choose)

    def _choose(self, _module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None:
            return None
        hidden, *rest = inputs  # hidden: [sequences, length, width]
        return (hidden.flatten(0, 1).index_select(0, self._positions).unsqueeze(0), *rest)

    def at(self, batch: MicroBatch, positions: torch.Tensor) -> torch.Tensor:
        """The logits at `positions` (int64 `[chosen]`, in the flattened `input_ids`): `[chosen, vocabulary]`."""
        self._positions = positions
        try:
            logits: torch.Tensor = self.model(**inputs(self.model, batch), use_cache=False).logits
        finally:
            self._positions = None
        return logits[0]

    def summed_loss(self, batch: MicroBatch) -> torch.Tensor:
        """The cross-entropy summed over the supervised tokens of a micro-batch, in nats: a scalar, float32."""
        logits = self.at(batch, batch.positions)
        return torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum")


def attention_of(model: Any) -> str:
    """The attention implementation that a model uses."""
    return str(model.config._attn_implementation)  # noqa: SLF001 (transformers has no public name for it)


def inputs(model: Any, batch: MicroBatch) -> dict[str, torch.Tensor | None]:
    """What a model is called with, besides `use_cache=False`, so that no document of a micro-batch sees another."""
    if batch.position_ids is None:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    input_ids, position_ids = batch.input_ids, batch.position_ids
    if "flash" in attention_of(model):
        # These kernels look for documents in a batch of one sequence only. Padding is a document too, so the sequences
        # can stand end to end.
        input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
    return {"input_ids": input_ids, "attention_mask": None, "position_ids": position_ids}
