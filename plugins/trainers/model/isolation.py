"""Whether a model keeps the documents of a sequence apart: measured on the model itself, before it is trained.

A model that mixes documents trains without any error, and learns to answer one example from another. Two checks:

- Does a document have the same logits as alone? This finds positions that go on from the document before.
- Does a change in one document leave the logits of the others as they were? This finds attention across documents, and
  a state that ignores the positions and runs on through the sequence (Mamba's). Both passes have the same shape and
  round alike, so the tolerance can be small in any precision.

`check_isolation` refuses a model that mixes the documents of packs. `lay_end_to_end` finds out whether all sequences of
a micro-batch can be laid end to end in one row, instead of one below the other and padded to the longest: that leaves
little padding however much the lengths differ. It takes an attention that tells documents apart by their positions,
FlashAttention on a GPU or `document_attention` on a CPU; whether a model computes the same with it also depends on the
rest of its code (windows that only a mask carries, states that run on).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from attrs import define, evolve, frozen
from numpy.typing import NDArray
from transformers import PreTrainedModel

from modelwright.core.api import ModelwrightError, TokenRow
from modelwright.plugins.trainers.batches.micro_batches import MicroBatch, collate, round_size
from modelwright.plugins.trainers.model.attention import DOCUMENT_ATTENTION, attention_of
from modelwright.plugins.trainers.model.loss import TrainedLogits

# In float32, relative to the largest logit (at least 1): sums are off by about 1e-7, which adds up over the layers.
TOLERANCE = 1e-5
# A bfloat16 number has 8 binary digits, and each sum is off by up to 2^-9 of itself. Single logits may be far off if a
# mixture of experts chooses other experts, so the mean difference is compared with the mean logit: passes of one shape
# differ by less than one rounding, passes of different shapes by what adds up over the layers.
LOWER_TOLERANCE_CHANGED = 2**-8
LOWER_TOLERANCE_ALONE = 2**-4
# Compared documents of each pack, and compared places in each of them: a pack may hold hundreds of documents.
DOCUMENTS, PLACES = 8, 8


class Computes(Protocol):
    """The pieces of a trainer's strategy that the checks need."""

    model: Any
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        ...


@frozen
class _Document:
    """A compared document: its row, its number in its pack, and its compared places, in itself and in the batch."""

    row: TokenRow
    number: int
    places: NDArray[np.int64]
    flat: NDArray[np.int64]


def check_isolation(strategy: Computes, logits: TrainedLogits, packs: Sequence[Sequence[TokenRow]]) -> None:
    """Check that a model keeps the documents of these packs apart; weights and random states stay as they are.

    Args:
        strategy: computes the forward pass as in training.
        logits: of the strategy's model.
        packs: the documents of each pack, at least two; the packs go through the model together.

    Raises:
        ModelwrightError: it mixes them.
    """
    if "position_ids" not in inspect.signature(strategy.model.forward).parameters:
        raise _leaks(strategy.model, "takes no position_ids, which keep the documents of a pack apart")
    documents = _compared_documents(packs)
    with _evaluating(strategy.model):
        together = _logits(strategy, logits, collate(packs), documents)
        # In this order: a document that sees others also differs from itself alone; the first check names the cause.
        _check_changes(strategy, logits, packs, documents, together)
        _check_alone(strategy, logits, documents, together)


def same_as_alone(strategy: Computes, logits: TrainedLogits, rows: Sequence[TokenRow], *, attention: str) -> bool:
    """Set a model's attention; returns whether rows laid end to end have the logits that each had alone before.

    And whether the logits of each row stay the same when the others are changed.
    """
    documents = _compared_documents([rows])
    with _evaluating(strategy.model):
        alone = [_alone(strategy, logits, document) for document in documents]
        if attention != attention_of(strategy.model):
            strategy.model.set_attn_implementation(attention)
        if attention != attention_of(strategy.model):  # some models ignore it
            return False
        together = _logits(strategy, logits, collate([rows]), documents)
        try:
            _check_changes(strategy, logits, [rows], documents, together)
        except ModelwrightError:
            return False
    pairs = zip(together, alone, strict=True)
    return all(_apart(strategy, one, other, lower=LOWER_TOLERANCE_ALONE) is None for one, other in pairs)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _compared_documents(packs: Sequence[Sequence[TokenRow]]) -> list[_Document]:
    width = round_size(max(sum(len(row.input_ids) for row in pack) for pack in packs))
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
    strategy: Computes, logits: TrainedLogits, batch: MicroBatch, documents: Sequence[_Document]
) -> list[torch.Tensor]:
    """The logits of each document at its places in the batch, float32 `[places, vocabulary]`."""
    places = torch.from_numpy(np.concatenate([document.flat for document in documents])).to(strategy.device)
    with strategy.autocast():
        found = logits.at(batch.to(strategy.device), places).float()
    return list(torch.split(found, [len(document.flat) for document in documents]))


def _apart(strategy: Computes, one: torch.Tensor, other: torch.Tensor, *, lower: float) -> float | None:
    """The largest difference of two documents' logits; None if it is rounding (in bfloat16 up to the share `lower`)."""
    # Some models give -inf to unused tokens; and if weights are not finite, the loss will show it.
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


def _alone(strategy: Computes, logits: TrainedLogits, document: _Document) -> torch.Tensor:
    (found,) = _logits(strategy, logits, collate([[document.row]]), [evolve(document, flat=document.places)])
    return found


def _check_alone(
    strategy: Computes, logits: TrainedLogits, documents: Sequence[_Document], together: Sequence[torch.Tensor]
) -> None:
    for document, packed in zip(documents, together, strict=True):
        alone = _alone(strategy, logits, document)
        apart = _apart(strategy, packed, alone, lower=LOWER_TOLERANCE_ALONE)
        if apart is not None:
            raise _leaks(
                strategy.model,
                f"computes other logits for example {document.row.id} in a pack than alone: they differ by {apart:.2g}",
            )


def _check_changes(
    strategy: Computes,
    logits: TrainedLogits,
    packs: Sequence[Sequence[TokenRow]],
    documents: Sequence[_Document],
    together: Sequence[torch.Tensor],
) -> None:
    """Change every second document, then the others: an unchanged document has changed neighbors on both sides."""
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
                    f"mixes the documents of a pack: the logits of example {document.row.id} changed by {moved:.2g} "
                    "when another example was changed",
                )


def _leaks(model: Any, what: str) -> ModelwrightError:
    kind, attention = model.config.model_type, attention_of(model)
    return ModelwrightError(f'the model ({kind}, attention {attention}) {what}: set [data.tokens] packing = "bucket"')


# Layers that see everything, or a window that their attention gets as an argument. Other kinds may depend on a mask.
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@define
class _WithoutAutocast:
    """The forward pass in the precision of the weights: if that is float32, small differences show."""

    model: Any
    device: torch.device

    def autocast(self) -> AbstractContextManager[object]:
        """None."""
        return nullcontext()


def lay_end_to_end(
    strategy: Computes,
    logits: TrainedLogits,
    rows: Sequence[TokenRow],
    *,
    requested: str,
    in_any_rank: Callable[[bool], bool],
) -> bool:
    """Find out whether sequences can go through a model end to end, and set the model's attention for it.

    Args:
        strategy: computes the forward pass as in training.
        logits: of its model.
        rows: to try it with, the longest of all rows among them; the same rows in every process.
        requested: the attention that the run requests.
        in_any_rank: whether a flag is true in any of the processes, which all call it together.

    Returns:
        Whether they can; if not, the model is left as it was.
    """
    model, own = strategy.model, attention_of(strategy.model)
    by_document = own == "sdpa" and requested == "auto" and strategy.device.type == "cpu"
    if not (by_document or "flash" in own) or not _is_decidable(model, rows):
        return False
    exact = by_document and model.dtype == torch.float32
    tried = _WithoutAutocast(model, strategy.device) if exact else strategy
    # This is not worth compiling anything for.
    with torch.compiler.set_stance("force_eager"):
        same = same_as_alone(tried, logits, rows, attention=DOCUMENT_ATTENTION if by_document else own)
    if in_any_rank(not same):
        if attention_of(model) != own:
            model.set_attn_implementation(own)
        return False
    return True


def _is_decidable(model: Any, rows: Sequence[TokenRow]) -> bool:
    """Whether a trial shows for certain how a model behaves."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    # The parts of a composite model may have different attentions, which cannot be set together.
    if len({attention_of(module) for module in model.modules() if isinstance(module, PreTrainedModel)}) != 1:
        return False
    text = model.config.get_text_config(decoder=True)
    if set(getattr(text, "layer_types", None) or []) - _KNOWN_LAYERS:
        return False
    # A missing window may hide in the rounding of weights that are not float32.
    window = getattr(text, "sliding_window", None)
    windowed = isinstance(window, int) and window < max(len(row.input_ids) for row in rows)
    return not windowed or model.dtype == torch.float32
