"""From a micro-batch to its loss. This is the one place where a trainer calls its model (`TrainedLogits`).

The logits of a whole batch are never in memory. With a vocabulary of V, the logits of n tokens and their gradient take
8 · n · V bytes in float32; at 8,192 tokens and 150,000 words that is ten times the model. So the cross-entropy is
computed from hidden states chunk by chunk (`chunked_loss`). The gradient of a chunk is known as soon as its loss is, so
it is computed in the forward pass and no chunk is kept: memory holds one chunk, and the gradients of hidden states and
weights. The idea is that of P.-L. Hsu et al., "Liger Kernel", 2024, section 3.2; for one chunk

    logits     = scale · (hidden · weightᵀ + bias)                     [chunk, V]
    logits    -= max(logits)                                           of each row, which changes nothing below
    loss       = Σ log Σ exp(logits) - logits[target]
    ∂logits    = scale · (softmax(logits) - onehot(target))            [chunk, V]
    ∂hidden    = ∂logits · weight                                      [chunk, width]
    ∂weight   += ∂logitsᵀ · hidden                                     [V, width]
    ∂bias     += Σ ∂logits                                             [V]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from modelwright.plugins.trainers.batches.micro_batches import MicroBatch, round_size
from modelwright.plugins.trainers.model.attention import model_inputs

# Maximum number of logits in a chunk: 32 MiB in float32, small beside a model and large beside a kernel call.
CHUNK = 1 << 23
# On a CPU 8 MiB, which stay in its caches from one pass over them to the next; but at least enough tokens that reading
# the weight matrix for each chunk does not take longer than the product.
CHUNK_ON_CPU, LEAST_ON_CPU = 1 << 21, 256


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
        wanted: tuple[bool, bool, bool],
        each: torch.Tensor,
    ) -> torch.Tensor:
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        rows = min(chunk_rows(weight.shape[0], hidden.device.type), int(round_size(max(1, len(targets)))))
        # All chunks have one shape: the last is filled up with zeros, and their results are not used.
        states = torch.nn.functional.pad(hidden.to(dtype), (0, 0, 0, -len(targets) % rows))
        matrix = weight.to(dtype)
        of_hidden = torch.empty_like(states) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), rows):
                chosen = targets[start : start + rows].unsqueeze(1)
                chunk = states[start : start + rows]
                logits = torch.nn.functional.linear(chunk, matrix, None if bias is None else bias.to(dtype)).float()
                if scale != 1:
                    logits *= scale
                logits -= logits.amax(1, keepdim=True)
                right = logits.gather(1, chosen)
                normalizer = logits.exp_().sum(1, keepdim=True)
                torch.sub(normalizer[: len(chosen)].log(), right, out=each[start : start + rows].unsqueeze(1))
                if not any(wanted):
                    continue
                gradient = logits.div_(normalizer)
                gradient.scatter_add_(1, chosen, gradient.new_full(chosen.shape, -1.0))
                if scale != 1:
                    gradient *= scale
                if of_bias is not None:
                    of_bias += gradient[: len(chosen)].sum(0)
                gradient = gradient.to(dtype)
                if of_hidden is not None:
                    torch.mm(gradient, matrix, out=of_hidden[start : start + rows])
                if of_weight is not None:
                    _add_product(of_weight, gradient, chunk)
        ctx.save_for_backward(
            None if of_hidden is None else of_hidden[: len(targets)].to(hidden.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None or bias is None else of_bias.to(bias.dtype),
        )
        return each.sum()

    @staticmethod
    def backward(ctx: Any, *factors: torch.Tensor) -> Any:
        (factor,) = factors
        gradients = (None if each is None else each * factor.to(each.dtype) for each in ctx.saved_tensors)
        return (*gradients, None, None, None, None)


def chunk_rows(vocabulary: int, device: str) -> int:
    """Maximum number of tokens in a chunk, on a kind of device such as "cuda"."""
    most = max(1, CHUNK // vocabulary)
    return min(most, max(LEAST_ON_CPU, CHUNK_ON_CPU // vocabulary)) if device == "cpu" else most


def _add_product(total: torch.Tensor, gradient: torch.Tensor, states: torch.Tensor) -> None:
    """Add `gradientᵀ · states` in float32: sums over many chunks would lose their last bits in bfloat16."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, states)
    else:
        total += gradient.T @ states


def chunked_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    scale: float,
    differentiated: bool,
    each: torch.Tensor,
) -> torch.Tensor:
    """The cross-entropy of `scale · (hidden · weightᵀ + bias)` against `targets`, summed, in nats: a scalar, float32.

    Args:
        hidden: `[tokens, width]`.
        weight: of the output layer, `[vocabulary, width]`.
        bias: `[vocabulary]`, or None.
        targets: int64 `[tokens]`.
        scale: the factor that the model multiplies its logits by.
        differentiated: whether there will be a backward pass. Its products are computed right away, in the precision
            of autocast if that is on.
        each: receives the cross-entropy of each token, float32 `[tokens]`.
    """
    inputs = (hidden, weight, bias)
    wanted = tuple(differentiated and each is not None and each.requires_grad for each in inputs)
    loss: torch.Tensor = _ChunkedLoss.apply(hidden, weight, bias, targets, scale, wanted, each)  # type: ignore[no-untyped-call]
    return loss


class TrainedLogits:
    """Makes a model compute logits at trained positions only; logits of all positions would fill the memory first.

    A hook on the output layer selects the positions before the layer runs, so that everything a model does to its
    logits afterwards (scaling, capping) still happens. If that is a scaling or nothing, even the selected logits are
    never in memory together: the output layer returns the loss instead, computed by `chunked_loss`.

    Args:
        model: a causal language model of transformers.
        forward: what is called in its place if something wraps the model.
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
        # An adapter makes the output layer another class, which computes more than one product with a matrix.
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
            logits: torch.Tensor = self._call(**model_inputs(self.model, batch), use_cache=False).logits
        finally:
            self._positions = None
        return logits

    def at(self, batch: MicroBatch, positions: torch.Tensor) -> torch.Tensor:
        """The logits at `positions` (int64 `[chosen]`, in the flattened `input_ids`): `[chosen, vocabulary]`."""
        return self._logits(batch, positions)[0]

    def summed_loss(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy over the trained tokens of a micro-batch, in nats, float32.

        Returns:
            The sum, a scalar with a gradient; and the value for each token, `[trained]`, without one.
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

        # The model has scaled the loss as if it were logits.
        return self._with(loss, batch).view(()) / scale, each

    def _with(self, instead: Callable[[torch.Tensor], torch.Tensor], batch: MicroBatch) -> torch.Tensor:
        self._instead = instead
        try:
            return self._logits(batch, batch.positions)
        finally:
            self._instead = None

    def _probe(self, batch: MicroBatch) -> float | None:
        """The factor that a model multiplies its logits by; None if it does something else to them."""
        known = torch.linspace(-32, 32, 8, device=batch.input_ids.device)
        # Dropout in this pass must not change the random numbers of the step.
        devices = [known.device] if known.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            seen = self._with(lambda _hidden: known.view(1, 1, -1), batch).flatten().float()
        if seen.shape != known.shape:
            return None
        ratio = (seen / known).double()
        scale = float(ratio.mean())
        return scale if scale and torch.allclose(ratio, ratio.mean(), rtol=1e-6, atol=0) else None
