"""Choose tokens from logits, and decode tokens to text that can be shown at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import torch
from attrs import frozen
from torch import Tensor

from modelwright.core.api.generation import Sampling

# A lower temperature is the same as 0 except for ties, and dividing by it would overflow.
_LEAST_TEMPERATURE = 1e-6


@frozen(kw_only=True)
class Chosen:
    """The next tokens, one for each row.

    Attributes:
        tokens: the chosen tokens.
        logprobs: their natural log-probabilities under the softmax of the logits; None if not requested.
        valid: whether the logits were finite; if not, the token is meaningless.
    """

    tokens: list[int]
    logprobs: list[float | None]
    valid: list[bool]


def generator(seed: int | None) -> torch.Generator:
    """Make a generator on the CPU, for any device of the model; None seeds it from the system's entropy."""
    made = torch.Generator()
    if seed is None:
        made.seed()
    else:
        made.manual_seed(seed & 0xFFFF_FFFF_FFFF_FFFF)  # accepts any integer, also negative ones
    return made


def choose(
    logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator], logprobs: Sequence[bool]
) -> Chosen:
    """Choose a token for each row.

    Args:
        logits: `[rows, vocabulary]`, of any floating type.
        samplings: each row's settings.
        generators: each row's random numbers; used if its temperature is above 0.
        logprobs: whether each row needs log-probabilities.
    """
    logits = logits.float()
    highest, tokens = logits.max(dim=-1)
    sampled = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    valid: list[bool] = highest.isfinite().tolist()
    for truncated in (False, True):
        # Rows are split by their own settings, because sorting a large vocabulary is expensive.
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
    # Strictly below the total, so that the search ends at a token with a weight above 0.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(cumulative, target, right=True)
    return (chosen if order is None else order.gather(1, chosen)).squeeze(1)


def _truncate(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero the weights that top_k and top_p exclude: sorted weights `[rows, vocabulary]`, limits `[rows, 1]`."""
    rank = torch.arange(weights.shape[1], device=weights.device)
    weights = weights * ((rank < top_k) | (top_k == 0))
    cumulative = weights.cumsum(dim=-1)
    before = cumulative - weights
    # The smallest set that reaches top_p keeps each token before which the sum is below it, and always the likeliest.
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


REPLACEMENT = "\ufffd"

# Number of tokens that are decoded again with each new one, as its context.
_CONTEXT = 16


class Decoder(Protocol):
    """The methods of `tokenizers.Tokenizer` that are used."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decode tokens to text."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Look up a token's id; None if it does not exist."""
        ...


def byte_tokens(tokenizer: Decoder) -> frozenset[int]:
    """The ids of the tokens `<0x00>` to `<0xFF>`, which are bytes in some vocabularies; empty for others."""
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token for token in ids if token is not None)


class Detokenizer:
    """Decodes tokens one by one. The joined pieces equal the decoding of all tokens, without special tokens.

    A trailing U+FFFD may still become a character, so it is held back. A run of byte tokens is decoded as a whole, and
    one wrong byte turns all its characters into U+FFFD; so a run is held back until it ends.

    Args:
        tokenizer: of the model.
        byte_tokens: the result of `byte_tokens(tokenizer)`.
    """

    def __init__(self, tokenizer: Decoder, byte_tokens: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_tokens = byte_tokens
        self._window: list[int] = []  # the last tokens
        self._given = 0  # number of characters of the window's text that were returned

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain."""
        self._window.append(token)
        if token in self._byte_tokens:
            return ""
        text = self._decode(self._window)
        certain = text.rstrip(REPLACEMENT)
        new = certain[self._given :]
        self._given += len(new)
        if len(self._window) > 2 * _CONTEXT and len(certain) == len(text):
            self._shorten(text)
        return new

    def finish(self) -> str:
        """Return the remaining text after the last token."""
        new = self._decode(self._window)[self._given :]
        self._given += len(new)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _shorten(self, text: str) -> None:
        """Drop old tokens, so that the cost of a token does not grow with the text.

        Some decoders treat the first token differently (no space before it), and a cut may fall inside a character. So
        the remaining tokens must decode to the end of the text, and to more than spaces.
        """
        tail = self._window[-_CONTEXT:]
        kept = self._decode(tail)
        if kept.strip() and text.endswith(kept):
            self._window, self._given = tail, len(kept)


class StopStrings:
    """Cuts a text at the first stop string, and holds back text that may be the beginning of one.

    The first is the one that ends first, and the longer of two that end together. The pieces in which the text comes do
    not matter.

    Args:
        stops: the stop strings, none of them empty.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; returns the text that is certainly before any stop string, and whether one was found."""
        if not self._stops:
            return text, False
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        certain = len(text) - self._open(text)
        self._held = text[certain:]
        return text[:certain], False

    def finish(self) -> str:
        """Return the text that was held back, after the last piece."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """The length of the longest suffix of `text` that is a prefix of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


class TextStream:
    """A `Detokenizer` followed by `StopStrings`."""

    def __init__(self, tokenizer: Decoder, byte_tokens: Collection[int], stops: Iterable[str]) -> None:
        self._tokens = Detokenizer(tokenizer, byte_tokens)
        self._stops = StopStrings(stops)

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token; returns the text that is now certain, and whether a stop string was found."""
        return self._stops.push(self._tokens.push(token))

    def finish(self) -> tuple[str, bool]:
        """Return the remaining text, and whether a stop string was found in it."""
        text, stopped = self._stops.push(self._tokens.finish())
        return (text, True) if stopped else (text + self._stops.finish(), False)
