"""Rows that step through the model together, with one key-value cache.

Prompts of different lengths are padded on the left, so that all rows end at the same column:

    cached        fed now
    . . a b c     d          "." is padding: masked, and not counted in positions
    e f g h i     j
    . k l m n     o
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modelwright.plugins.engines.loading import LoadedModel
from modelwright.plugins.engines.row import Row

# Rows up to this long share a cache whatever their lengths: there is little to waste.
_SHORT = 256


class Cohort:
    """Rows with one cache.

    Attributes:
        rows: in the order of the cache's rows; `row.length` counts a row's cached tokens.
        width: columns of the cache, padding included.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._cache: Any = model.cache()
        self.rows: list[Row] = []
        self.width = 0

    def prefill(self, rows: Sequence[Row]) -> Tensor:
        """Run the rows' prompts; give the logits of their first tokens, `[rows, vocabulary]`."""
        self.rows = list(rows)
        self.width = max(len(row.request.prompt) for row in rows)
        padded = [(0,) * (self.width - len(row.request.prompt)) + row.request.prompt for row in rows]
        for row in rows:
            row.length = len(row.request.prompt)
        mask = self._mask()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._model.forward(self._tensor(padded), mask, positions, self._cache)

    def step(self) -> Tensor:
        """Feed each row its last token; give the logits of its next, `[rows, vocabulary]`."""
        tokens = self._tensor([[row.last] for row in self.rows])
        positions = self._tensor([[row.length] for row in self.rows])
        self.width += 1
        for row in self.rows:
            row.length += 1
        return self._model.forward(tokens, self._mask(), positions, self._cache)

    def drop_ended(self) -> None:
        """Take the rows that have ended out of the cache."""
        kept = [index for index, row in enumerate(self.rows) if not row.ended]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if not self.rows:
            return
        self._cache.reorder_cache(self._tensor(kept))
        longest = max(row.length for row in self.rows)
        if self._model.attends:
            for layer in self._layers():
                layer.keys, layer.values = layer.keys[:, :, -longest:], layer.values[:, :, -longest:]
            self.width = longest

    def can_join(self, other: Cohort) -> bool:
        """Whether one cache for both wastes little on padding."""
        rows = self.rows + other.rows
        width = max(self.width, other.width)
        used = sum(row.length for row in rows)
        return self._model.attends and (width <= _SHORT or width * len(rows) <= 2 * used)

    def join(self, other: Cohort) -> None:
        """Take over another cohort's rows."""
        width = max(self.width, other.width)
        for mine, theirs in zip(self._layers(), other._layers(), strict=True):
            mine.keys = torch.cat([_pad(mine.keys, width), _pad(theirs.keys, width)])
            mine.values = torch.cat([_pad(mine.values, width), _pad(theirs.values, width)])
        self.rows += other.rows
        self.width = width

    def _layers(self) -> list[Any]:
        # Some models share one layer's keys and values between several, and leave the others' empty.
        return [layer for layer in self._cache.layers if layer.is_initialized]

    def _mask(self) -> Tensor:
        padding = self.width - self._tensor([row.length for row in self.rows])
        columns = torch.arange(self.width, device=self._model.device)
        return (columns >= padding.unsqueeze(1)).long()

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


def _pad(states: Tensor, width: int) -> Tensor:
    """Pad `[rows, heads, columns, size]` on the left to `width` columns."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
