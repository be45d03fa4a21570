"""The one place where a trainer calls its model: documents that share a sequence are kept apart here, and only here.

transformers finds the documents of a sequence by their positions, which begin anew in each, and masks attention between
them, but only where it is given no mask and no cache. A mask of ones, or the cache that models make by default,
switches that off without a word, and every document attends to those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from modelwright.plugins.trainers.batches.data import MicroBatch
from modelwright.plugins.trainers.batches.document_attention import BY_DOCUMENT
from modelwright.plugins.trainers.model.loss import chunked_loss


class SupervisedLogits:
    """Makes a model compute logits at chosen positions only: those of a whole vocabulary are what memory goes to first.

    The positions are chosen before the output layer, by a hook on it, so that whatever a model does to its logits
    afterwards (scaling, capping) still happens. For the loss even those logits are never there all at once: the output
    layer itself gives the loss, chunk by chunk (`ChunkedLoss`), where nothing but a scaling happens afterwards.

    Args:
        model: a causal language model of transformers.
        forward: what is called in its place, where something wraps it.
    """

    def __init__(self, model: Any, forward: Callable[..., Any] | None = None) -> None:
        self.model = model
        self._call = forward or model
        self._positions: torch.Tensor | None = None
        self._instead: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._scale: float | None = None
        self._head = model.get_output_embeddings()
        self._head_forward = self._head.forward
        self._head.register_forward_pre_hook(self._choose)
        # An adapter on the output layer makes it another class, whose product is more than one with a matrix.
        self._probed = type(self._head) is not torch.nn.Linear
        if not self._probed:
            self._head.forward = self._head_or_instead

    def _choose(self, _module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None:
            return None
        hidden, *rest = inputs  # hidden: [sequences, length, width]
        return (hidden.flatten(0, 1).index_select(0, self._positions).unsqueeze(0), *rest)

    def _head_or_instead(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = (self._instead or self._head_forward)(hidden)
        return result

    def _logits(self, batch: MicroBatch, positions: torch.Tensor) -> torch.Tensor:
        self._positions = positions
        try:
            logits: torch.Tensor = self._call(**inputs(self.model, batch), use_cache=False).logits
        finally:
            self._positions = None
        return logits

    def at(self, batch: MicroBatch, positions: torch.Tensor) -> torch.Tensor:
        """The logits at `positions` (int64 `[chosen]`, in the flattened `input_ids`): `[chosen, vocabulary]`."""
        return self._logits(batch, positions)[0]

    def summed_loss(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy over the supervised tokens of a micro-batch, in nats, float32.

        Returns:
            Its sum, a scalar with a gradient; and that of each token, `[supervised]`, without one.
        """
        if not self._probed:
            self._scale = self._probe(batch)
            self._probed = True
        scale = self._scale
        if scale is None:
            logits = self.at(batch, batch.positions)
            losses = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
            return losses.sum(), losses.detach()
        differentiated = torch.is_grad_enabled()
        each = torch.empty(batch.targets.shape, dtype=torch.float32, device=batch.targets.device)

        def loss(hidden: torch.Tensor) -> torch.Tensor:
            head = self._head
            summed = chunked_loss(
                hidden[0],
                head.weight,
                head.bias,
                batch.targets,
                scale=scale,
                differentiated=differentiated,
                each=each,
            )
            return summed.view(1, 1, 1)

        # The model scales what it takes for logits.
        return self._with(loss, batch).view(()) / scale, each

    def _with(self, instead: Callable[[torch.Tensor], torch.Tensor], batch: MicroBatch) -> torch.Tensor:
        self._instead = instead
        try:
            return self._logits(batch, batch.positions)
        finally:
            self._instead = None

    def _probe(self, batch: MicroBatch) -> float | None:
        """What a model multiplies its logits with; None where it does something else to them."""
        known = torch.linspace(-32, 32, 8, device=batch.input_ids.device)
        # Dropout in it must not move what is drawn for the step.
        devices = [known.device] if known.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            seen = self._with(lambda _hidden: known.view(1, 1, -1), batch).flatten().float()
        if seen.shape != known.shape:
            return None
        ratio = (seen / known).double()
        scale = float(ratio.mean())
        return scale if scale and torch.allclose(ratio, ratio.mean(), rtol=1e-6, atol=0) else None


def attention_of(model: Any) -> str:
    """The attention implementation that a model uses."""
    return str(model.config._attn_implementation)  # noqa: SLF001 (transformers has no public name for it)


def inputs(model: Any, batch: MicroBatch) -> dict[str, torch.Tensor | None]:
    """What a model is called with, besides `use_cache=False`, so that no document of a micro-batch sees another."""
    if batch.position_ids is None:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    input_ids, position_ids = batch.input_ids, batch.position_ids
    attention = attention_of(model)
    if "flash" in attention or attention == BY_DOCUMENT:
        # These look for documents in a batch of one sequence only. Padding is a document too, so the sequences can
        # stand end to end.
        input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
    return {"input_ids": input_ids, "attention_mask": None, "position_ids": position_ids}
