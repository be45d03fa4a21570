"""The built-in trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api import TrainerSpec, hookimpl

# Options that change how much memory and time a training takes, and its result by rounding only: a run that was stopped
# goes on with other values.
_HOW = {"changes_result": False}


@frozen(kw_only=True)
class LocalOptions:
    """`[train.options]` of the trainer `local`.

    Attributes:
        micro_batch_tokens: where `micro_batch_size` is not given, a micro-batch holds at most this many tokens, padding
            included (and always one sequence at least).
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: less memory,
            about a third more time.
    """

    micro_batch_tokens: int = field(default=8192, validator=validators.gt(0), metadata=_HOW)
    gradient_checkpointing: bool = field(default=False, metadata=_HOW)


# What the run file says in other places, by DeepSpeed's name for it.
_ELSEWHERE = {
    "train_batch_size": "batch_size in [train]",
    "train_micro_batch_size_per_gpu": "micro_batch_size in [train]",
    "gradient_accumulation_steps": "micro_batch_size in [train]; what is left of a batch is accumulated",
    "managed_gradient_accumulation": "nothing: the loop knows when a step ends",
    "gradient_clipping": "clip_norm in [train]",
    "optimizer": "learning_rate and weight_decay in [train]; the optimiser is AdamW",
    "scheduler": "schedule and warmup in [train]",
    "bf16": "precision in [train]",
    "fp16": 'precision = "bfloat16" in [train]; float16 would need a loss scale',
    "zero_optimization.stage": "zero_stage in [train.options]",
    "zero_optimization.offload_optimizer.device": "offload in [train.options]",
    "zero_optimization.offload_param.device": "offload in [train.options]",
    "checkpoint.load_universal": "nothing: a checkpoint of another number of processes is taken over by itself",
    "zero_optimization.compute_grad_norm": "nothing: the norm tells whether a step is good",
    "tensor_parallel": "nothing: each process has data of its own here",
    "sequence_parallel_size": "nothing: each process has data of its own here",
    "pipeline": "nothing: each process has data of its own here",
}


@frozen(kw_only=True)
class DeepSpeedOptions:
    """`[train.options]` of the trainer `deepspeed`.

    Attributes:
        zero_stage: what the processes share out: 0 nothing, 1 the optimiser's states, 2 gradients too, 3 weights too.
        offload: what is kept in the computer's memory instead of the GPU's: the optimiser's states (from stage 1), or
            the weights too (stage 3).
        micro_batch_tokens: where `micro_batch_size` is not given, a micro-batch of a process holds at most this many
            tokens, padding included (and always one sequence at least).
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: less memory,
            about a third more time.
        config: any other setting of DeepSpeed, as in its JSON configuration.
    """

    zero_stage: Literal[0, 1, 2, 3] = field(default=2, metadata=_HOW)
    offload: Literal["none", "optimizer", "all"] = field(default="none", metadata=_HOW)
    micro_batch_tokens: int = field(default=8192, validator=validators.gt(0), metadata=_HOW)
    gradient_checkpointing: bool = field(default=False, metadata=_HOW)
    config: Mapping[str, Any] = field(factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong between fields, as (key, message)."""
        if self.offload == "all" and self.zero_stage != 3:
            yield "offload", f'"all" needs zero_stage = 3, not {self.zero_stage}: only there weights are shared out'
        if self.offload == "optimizer" and self.zero_stage == 0:
            yield "offload", '"optimizer" needs zero_stage = 1, 2 or 3: 0 shares nothing out'
        for path in _paths(self.config):
            found = _ELSEWHERE.get(path) or _ELSEWHERE.get(path.partition(".")[0])
            if found:
                yield "config", f"{path} has another place: set {found}"


def _paths(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


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
    yield TrainerSpec(
        name="deepspeed",
        summary="DeepSpeed ZeRO over several processes, on GPUs or CPUs, on one machine or many",
        options=DeepSpeedOptions,
        factory="modelwright.plugins.trainers.deepspeed.trainer:DeepSpeedTrainer",
        needs="modelwright[deepspeed]",
        launcher="deepspeed",
        adapters=True,
    )
