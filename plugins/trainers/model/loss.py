"""Cross-entropy from hidden states, chunk by chunk: the logits of a whole batch are never in memory.

With a vocabulary of V the logits of n tokens, and their gradient, take 8 · n · V bytes in float32; at 8,192 tokens and
150,000 words that is ten times the model. The gradient of a chunk is known as soon as its loss is, so it is computed in
the forward pass, and no chunk is kept: memory takes one chunk, and the gradients of hidden states and weights. The idea
is that of P.-L. Hsu et al., "Liger Kernel", 2024, section 3.2; for one chunk

    logits     = scale · (hidden · weightᵀ + bias)                     [chunk, V]
    logits    -= max(logits)                                           each row's own, which changes nothing below
    loss       = Σ log Σ exp(logits) - logits[target]
    ∂logits    = scale · (softmax(logits) - onehot(target))            [chunk, V]
    ∂hidden    = ∂logits · weight                                      [chunk, width]
    ∂weight   += ∂logitsᵀ · hidden                                     [V, width]
    ∂bias     += Σ ∂logits                                             [V]
"""

from __future__ import annotations

from typing import Any

import torch

from modelwright.plugins.trainers.batches.size_rounding import round_size

# The most numbers in a chunk's logits: 32 MiB in float32, which is small beside a model and large beside a kernel call.
CHUNK = 1 << 23
# On a CPU 8 MiB, which its caches hold from one pass over them to the next; but not so few tokens that reading the
# matrix for each chunk takes longer.
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
        rows = min(_rows(weight.shape[0], hidden.device), int(round_size(max(1, len(targets)))))
        # All chunks have one shape: the last is filled up with zeros, of whose results none is used.
        states = torch.nn.functional.pad(hidden.to(dtype), (0, 0, 0, -len(targets) % rows))
        matrix = weight.to(dtype)
        of_hidden = torch.empty_like(states) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] and bias is not None else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), rows):
                chosen = targets[start : start + rows].unsqueeze(1)
                part = states[start : start + rows]
                logits = torch.nn.functional.linear(part, matrix, None if bias is None else bias.to(dtype)).float()
                if scale != 1:
                    logits *= scale
                logits -= logits.amax(1, keepdim=True)
                right = logits.gather(1, chosen)
                normaliser = logits.exp_().sum(1, keepdim=True)
                torch.sub(normaliser[: len(chosen)].log(), right, out=each[start : start + rows].unsqueeze(1))
                if not any(wanted):
                    continue
                gradient = logits.div_(normaliser)
                gradient.scatter_add_(1, chosen, gradient.new_full(chosen.shape, -1.0))
                if scale != 1:
                    gradient *= scale
                if of_bias is not None:
                    of_bias += gradient[: len(chosen)].sum(0)
                gradient = gradient.to(dtype)
                if of_hidden is not None:
                    torch.mm(gradient, matrix, out=of_hidden[start : start + rows])
                if of_weight is not None:
                    _add_product(of_weight, gradient, part)
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


def _rows(vocabulary: int, device: torch.device) -> int:
    """How many tokens a chunk has at most."""
    most = max(1, CHUNK // vocabulary)
    return min(most, max(LEAST_ON_CPU, CHUNK_ON_CPU // vocabulary)) if device.type == "cpu" else most


def _add_product(total: torch.Tensor, gradient: torch.Tensor, part: torch.Tensor) -> None:
    """Add `gradientᵀ · part` in float32: sums over many chunks would lose their last bits in bfloat16."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, part)
    else:
        total += gradient.T @ part


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
        scale: what the model multiplies its logits with.
        differentiated: whether there will be a backward pass. Its products are computed at once, in the precision of
            autocast where that is on.
        each: is filled with the cross-entropy of each token, float32 `[tokens]`.
    """
    inputs = (hidden, weight, bias)
    wanted = tuple(differentiated and each is not None and each.requires_grad for each in inputs)
    loss: torch.Tensor = _ChunkedLoss.apply(hidden, weight, bias, targets, scale, wanted, each)  # type: ignore[no-untyped-call]
    return loss
