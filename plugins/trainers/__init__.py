"""The built-in trainers."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import field, frozen, validators

from modelwright.core.api import TrainerSpec, hookimpl


@frozen(kw_only=True)
class LocalOptions:
    """`[train.options]` of the trainer `local`.

    Attributes:
        micro_batch_tokens: where `micro_batch_size` is not given, a micro-batch holds at most this many tokens, padding
            included (and always one sequence at least).
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: less memory,
            about a third more time.
    """

    micro_batch_tokens: int = field(default=8192, validator=validators.gt(0))
    gradient_checkpointing: bool = False


@hookimpl
def modelwright_trainers() -> Iterator[TrainerSpec]:
    """The trainers that come with Modelwright."""
    yield TrainerSpec(
        name="local",
        summary="one process, on the CPU or one GPU, all weights or an adapter trained",
        options=LocalOptions,
        factory="modelwright.plugins.trainers.local:LocalTrainer",
        needs="modelwright[train]",
        launcher="python",
        adapters=True,
    )
