"""Choosing the next tokens of many rows at once, each row by its own settings and its own random numbers.

A row draws one number from its own generator for each token, so what it samples depends on its seed and its logits, not
on its neighbours. (Logits of another batch size may differ in the last bits, as matrix products sum in another order.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from modelwright.core.api.generation import Sampling

# Below this a temperature takes the likeliest token but for ties, and a division by it overflows.
_LEAST_TEMPERATURE = 1e-6


@frozen(kw_only=True)
class Chosen:
    """The next tokens, one an entry for each row.

    Attributes:
        tokens: the tokens chosen.
        logprobs: their natural log-probabilities under the softmax of the logits; None where not asked for.
        valid: whether the logits were numbers; where not, the token means nothing.
    """

    tokens: list[int]
    logprobs: list[float | None]
    valid: list[bool]


def generator(seed: int | None) -> torch.Generator:
    """A generator on the CPU, whatever device the model is on; None seeds it from the system's entropy."""
    made = torch.Generator()
    if seed is None:
        made.seed()
    else:
        made.manual_seed(seed & 0xFFFF_FFFF_FFFF_FFFF)  # any integer will do, negative ones too
    return made


def choose(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator], logprobs: Sequence[bool]
) -> Chosen:
    """Choose a token for each row.

    Args:
        logits: `[rows, vocabulary]`, of any floating type.
        samplings: each row's settings.
        generators: each row's random numbers; used where its temperature is above 0.
        logprobs: which rows want log-probabilities.
    """
    logits = logits.float()
    highest, tokens = logits.max(dim=-1)
    sampled = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    valid: list[bool] = highest.isfinite().tolist()
    for truncated in (False, True):
        # Two groups, chosen by each row's own settings: sorting a large vocabulary is dear.
        rows = [row for row in sampled if valid[row] and _truncates(samplings[row]) is truncated]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            tokens[index] = _sample(
                logits[index], [samplings[row] for row in rows], [generators[row] for row in rows], truncated=truncated
            )
    return Chosen(tokens=tokens.tolist(), logprobs=_logprobs(logits, tokens, logprobs), valid=valid)


def _truncates(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def _sample(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator], *, truncated: bool
) -> Tensor:
    """Sample by the inverse of the cumulative distribution, `[rows, vocabulary]` to `[rows]`.

    The order is that of transformers and vLLM: temperature, then top_k, then top_p on what top_k left.
    """
    device = logits.device
    wide = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=wide, device=device).unsqueeze(1)

    temperature = column([max(sampling.temperature, _LEAST_TEMPERATURE) for sampling in samplings])
    uniform = column([torch.rand((), generator=generator, dtype=torch.float64).item() for generator in generators])
    weights = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    order: Tensor | None = None
    if truncated:
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
        weights = _truncate(
            weights, column([sampling.top_k for sampling in samplings]), column([s.top_p for s in samplings])
        )
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Strictly below the total, so that the search ends at a token with a weight.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(cumulative, target, right=True)
    return (chosen if order is None else order.gather(1, chosen)).squeeze(1)


def _truncate(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero what top_k and top_p leave out; `weights` are sorted, `[rows, vocabulary]`, the limits `[rows, 1]`."""
    rank = torch.arange(weights.shape[1], device=weights.device)
    weights = weights * ((rank < top_k) | (top_k == 0))
    cumulative = weights.cumsum(dim=-1)
    before = cumulative - weights
    # The smallest set that reaches top_p: each token before which it was not yet reached. The likeliest always stays.
    return weights * ((before < top_p * cumulative[:, -1:]) | (top_p >= 1) | (rank == 0))


def _logprobs(logits: Tensor, tokens: Tensor, wanted: Sequence[bool]) -> list[float | None]:
    result: list[float | None] = [None] * len(wanted)
    rows = [row for row, wants in enumerate(wanted) if wants]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        values = logits[index].log_softmax(dim=-1).gather(1, tokens[index].unsqueeze(1)).squeeze(1)
        for row, value in zip(rows, values.tolist(), strict=True):
            result[row] = value
    return result
