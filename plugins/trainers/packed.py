"""The one forward pass of the trainers, and the proof that documents in a pack do not see each other.

What tells a model of transformers where a document begins is that positions start anew there. Whether it listens
depends on how it is called: with its cache or with a mask of ones, it takes the pack for one document and says
nothing. So the call is made here alone, and what came of it is measured before each training on packs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import numpy as np
import torch

from modelwright.core.api import ModelwrightError, TokenRow
from modelwright.plugins.trainers.data import Corpus, MicroBatch, collate

# So many packs are looked at: two, since a batch of them may be what a model takes otherwise.
PACKS = 2
# How far logits may be from those of a document alone, in parts of the largest: the sums have another order, in
# bfloat16 with 8 bits. Where another document is seen, or positions run on, they are apart by tenths.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06}
# A document that is kept apart does not change at all with another; a kernel may still sum in another order.
MOVED = 1e-5

# Gives the logits at a micro-batch's positions, [positions, vocabulary].
Logits = Callable[[MicroBatch], torch.Tensor]
Pack = Sequence[TokenRow]


def forward(model: Any, batch: MicroBatch) -> torch.Tensor:
    """The logits of a micro-batch, `[sequences, length, vocabulary]`."""
    given = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    logits: torch.Tensor = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **given
    ).logits
    return logits


def check_isolation(model: Any, corpus: Corpus, logits: Logits, autocast: AbstractContextManager[object]) -> None:
    """Compare packs of the corpus with their documents alone, and with the same packs behind other first documents.

    A corpus without packs of several documents has nothing to compare.

    Args:
        model: as it will be trained, on its device; it is put into evaluation while this takes.
        corpus: what it will be trained on.
        logits: of that model.
        autocast: the precision of the forward pass.

    Raises:
        ModelwrightError: a document is not computed as it is alone.
    """
    packs = corpus.some_packs(PACKS)
    if not packs:
        return
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast:
            why = _leak(packs, logits, device=next(model.parameters()).device, largest_token=corpus.largest_token)
    except (TypeError, ValueError) as error:  # what a model raises that takes no positions
        why = " ".join(str(error).split())
    finally:
        model.train(training)
    if why is not None:
        attention = getattr(model.config, "_attn_implementation", None) or "of its own"
        raise ModelwrightError(
            f"{type(model).__name__}, attention {attention}, does not keep the documents of a pack apart ({why}): set "
            '[data.tokens] packing = "bucket"'
        )


def _leak(packs: Sequence[Pack], logits: Logits, *, device: torch.device, largest_token: int) -> str | None:
    """What is wrong with the logits at the documents' first and last tokens, if anything."""

    def at_edges(packs: Sequence[Pack], *, packed: bool) -> torch.Tensor:
        return logits(_asking_at_edges(collate(packs, packed=packed), packs).to(device))

    together = at_edges(packs, packed=True)
    alone = torch.cat([at_edges([[document]], packed=False) for pack in packs for document in pack]).float()
    largest = max(1.0, float(alone.abs().max()))
    apart = float((together.float() - alone).abs().max()) / largest
    if not apart <= TOLERANCE.get(together.dtype, max(TOLERANCE.values())):
        return f"the logits are {apart:.2g} of the largest away from those of each document alone"
    changed = [[_another(pack[0], largest_token), *pack[1:]] for pack in packs]
    later = torch.tensor([number > 0 for pack in packs for number in range(len(pack)) for _edge in range(2)])
    difference = (at_edges(changed, packed=True) - together).float()[later.to(device)]
    moved = float(difference.abs().max()) / largest
    if not moved <= MOVED:
        return f"another first document moves the logits of the later ones by {moved:.2g} of the largest"
    return None


def _asking_at_edges(batch: MicroBatch, packs: Sequence[Pack]) -> MicroBatch:
    """The same micro-batch, asking for the logits at the first and the last token of each document."""
    width, places = batch.input_ids.shape[1], []
    for number, pack in enumerate(packs):
        ends = np.cumsum([len(document.input_ids) for document in pack])
        for document, end in zip(pack, ends.tolist(), strict=True):
            places += [number * width + end - len(document.input_ids), number * width + end - 1]
    return attrs.evolve(batch, positions=torch.tensor(places))


def _another(document: TokenRow, largest_token: int) -> TokenRow:
    """A document as long whose every token is another."""
    return attrs.evolve(document, input_ids=(document.input_ids + 1) % (largest_token + 1))
