"""Whether a model keeps the documents of a pack apart: asked of the model itself, before it is trained on packs.

A model that mixes them trains without any error, and learns to answer one example from another. Two questions:

- Does a document have the logits that it has alone? Positions that go on from the document before are found so.
- Does a change in one document leave the logits of the others as they were? Attention across documents shows, and a
  state that runs on through the sequence (Mamba's), whatever the positions are. Both passes have the same shape and
  round alike, so that little is allowed here in any precision.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray

from modelwright.core.api import ModelwrightError, TokenRow
from modelwright.plugins.trainers.batches.data import MicroBatch, collate
from modelwright.plugins.trainers.model.forward import SupervisedLogits, attention_of

# In float32, of the largest logit, or of 1: sums are off by about 1e-7 of themselves, which adds up over the layers.
TOLERANCE = 1e-5
# In bfloat16 a number has 8 binary digits, and each sum is off by up to 2^-9 of itself. Single logits may be far off
# where a mixture of experts chooses otherwise, so the mean is looked at, of the mean logit: passes of one shape differ
# by less than a rounding, passes of different shapes by what the layers add up.
LOWER_TOLERANCE_CHANGED = 2**-8
LOWER_TOLERANCE_ALONE = 2**-4
# A pack may hold hundreds of documents: so many of it are looked at, and so many places in each.
DOCUMENTS, PLACES = 8, 8


class Computes(Protocol):
    """What is needed of a trainer's strategy."""

    model: Any
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        ...


@frozen
class _Document:
    """A document looked at: its row, its number in its pack, and its places looked at, in itself and in the batch."""

    row: TokenRow
    number: int
    places: NDArray[np.int64]
    flat: NDArray[np.int64]


def check_isolation(strategy: Computes, logits: SupervisedLogits, packs: Sequence[Sequence[TokenRow]]) -> None:
    """Check that a model keeps the documents of these packs apart; weights and random states stay as they are.

    Args:
        strategy: computes the forward pass as in training.
        logits: of the strategy's model.
        packs: the documents of each, two at least; they go through the model together.

    Raises:
        ModelwrightError: it does not.
    """
    if "position_ids" not in inspect.signature(strategy.model.forward).parameters:
        raise _leaks(strategy.model, "takes no position_ids, by which the documents of a pack are kept apart")
    documents = _looked_at(packs)
    with _only_looking(strategy.model):
        together = _logits(strategy, logits, collate(packs), documents)
        # In this order: a document that sees others has other logits than alone too, and the cause is worth more.
        _check_changes(strategy, logits, packs, documents, together)
        _check_alone(strategy, logits, documents, together)


def same_as_alone(strategy: Computes, logits: SupervisedLogits, rows: Sequence[TokenRow], *, attention: str) -> bool:
    """Give a model this attention; tells whether rows end to end have with it the logits of each alone without it.

    And whether none of them has others when the rest are changed.
    """
    documents = _looked_at([rows])
    with _only_looking(strategy.model):
        alone = [_alone(strategy, logits, document) for document in documents]
        if attention != attention_of(strategy.model):
            strategy.model.set_attn_implementation(attention)
        if attention != attention_of(strategy.model):  # some do not heed it
            return False
        together = _logits(strategy, logits, collate([rows]), documents)
        try:
            _check_changes(strategy, logits, [rows], documents, together)
        except ModelwrightError:
            return False
    pairs = zip(together, alone, strict=True)
    return all(_apart(strategy, one, other, lower=LOWER_TOLERANCE_ALONE) is None for one, other in pairs)


@contextmanager
def _only_looking(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _looked_at(packs: Sequence[Sequence[TokenRow]]) -> list[_Document]:
    width = max(sum(len(row.input_ids) for row in pack) for pack in packs)
    documents = []
    for index, pack in enumerate(packs):
        start = index * width
        for number, row in enumerate(pack):
            if number < DOCUMENTS:
                places = np.unique(np.linspace(0, len(row.input_ids) - 1, PLACES).astype(np.int64))
                documents.append(_Document(row, number, places, places + start))
            start += len(row.input_ids)
    return documents


def _logits(
    strategy: Computes, logits: SupervisedLogits, batch: MicroBatch, documents: Sequence[_Document]
) -> list[torch.Tensor]:
    """The logits of each document at its places in the batch, float32 `[places, vocabulary]`."""
    places = torch.from_numpy(np.concatenate([document.flat for document in documents])).to(strategy.device)
    with strategy.autocast():
        found = logits.at(batch.to(strategy.device), places).float()
    return list(torch.split(found, [len(document.flat) for document in documents]))


def _apart(strategy: Computes, one: torch.Tensor, other: torch.Tensor, *, lower: float) -> float | None:
    """By how much two documents' logits differ at most; None where it is rounding, in bfloat16 by the share `lower`."""
    # Some models give -inf to tokens that are none; and where weights are no numbers, the loss will tell.
    numbers = torch.isfinite(one) & torch.isfinite(other)
    if not numbers.any():
        return None
    difference, size = (one - other)[numbers].abs(), other[numbers].abs()
    with strategy.autocast():
        is_lower = torch.is_autocast_enabled(strategy.device.type) or strategy.model.dtype != torch.float32
    if is_lower:
        alike = difference.mean() <= lower * size.mean()
    else:
        alike = difference.max() <= TOLERANCE * size.max().clamp(min=1.0)
    return None if alike else difference.max().item()


def _alone(strategy: Computes, logits: SupervisedLogits, document: _Document) -> torch.Tensor:
    (found,) = _logits(strategy, logits, collate([[document.row]]), [evolve(document, flat=document.places)])
    return found


def _check_alone(
    strategy: Computes, logits: SupervisedLogits, documents: Sequence[_Document], together: Sequence[torch.Tensor]
) -> None:
    for document, packed in zip(documents, together, strict=True):
        alone = _alone(strategy, logits, document)
        apart = _apart(strategy, packed, alone, lower=LOWER_TOLERANCE_ALONE)
        if apart is not None:
            raise _leaks(
                strategy.model,
                f"gives example {document.row.id} other logits in a pack than alone: they differ by {apart:.2g}",
            )


def _check_changes(
    strategy: Computes,
    logits: SupervisedLogits,
    packs: Sequence[Sequence[TokenRow]],
    documents: Sequence[_Document],
    together: Sequence[torch.Tensor],
) -> None:
    """Change every second document, then the others: what was not changed has neighbours on both sides that were."""
    vocabulary = strategy.model.get_input_embeddings().weight.shape[0]
    for changed in (0, 1):
        other = [
            [
                evolve(row, input_ids=(row.input_ids + 1) % vocabulary) if number % 2 == changed else row
                for number, row in enumerate(pack)
            ]
            for pack in packs
        ]
        after = _logits(strategy, logits, collate(other), documents)
        for document, was, now in zip(documents, together, after, strict=True):
            moved = _apart(strategy, now, was, lower=LOWER_TOLERANCE_CHANGED)
            if moved is not None and document.number % 2 != changed:
                raise _leaks(
                    strategy.model,
                    f"mixes the documents of a pack: the logits of example {document.row.id} moved by {moved:.2g} when "
                    "another one was changed",
                )


def _leaks(model: Any, what: str) -> ModelwrightError:
    kind, attention = model.config.model_type, attention_of(model)
    return ModelwrightError(f'the model ({kind}, attention {attention}) {what}: set [data.tokens] packing = "bucket"')
