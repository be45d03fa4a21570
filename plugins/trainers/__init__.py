"""The built-in trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import field, frozen, validators

from modelwright.core.api import DEVICE, TrainerSpec, hookimpl
from modelwright.core.api.wording import closest

# Marks options that change the memory and time of a training, and its result only by rounding: a stopped run can be
# resumed with other values.
_HOW = {"changes_result": False}


def _is_device(_instance: object, _attribute: object, value: str) -> None:
    if not DEVICE.fullmatch(value):
        raise ValueError(f'must be "auto", "cpu", "cuda", "cuda:N", "xpu", "xpu:N" or "mps", not {value!r}')


@frozen(kw_only=True)
class LocalOptions:
    """`[train.options]` of the trainer `local`.

    Attributes:
        micro_batch_tokens: Maximum number of tokens in a micro-batch, padding included; it always holds at least one
            sequence. Lower it if the GPU runs out of memory. Not used if `micro_batch_size` is set.
        device: What it computes on: `"cpu"`, `"cuda"` (NVIDIA's and AMD's GPUs), `"cuda:1"`, `"xpu"` (Intel's), `"mps"`
            (Apple's). `"auto"` takes the first GPU that torch can use, otherwise the CPU. Set it to choose one of
            several GPUs, or to train on the CPU of a machine that has some.
    """

    micro_batch_tokens: int = field(default=8192, validator=validators.gt(0), metadata=_HOW)
    device: str = field(default="auto", validator=_is_device, metadata=_HOW)


# Settings of DeepSpeed that belong in other places of the run file, and what to do instead.
ELSEWHERE = {
    "train_batch_size": "set batch_size in [train]",
    "train_micro_batch_size_per_gpu": "set micro_batch_size in [train]",
    "gradient_accumulation_steps": "set micro_batch_size in [train], and the rest of a batch is accumulated",
    "managed_gradient_accumulation": "remove it, because the training loop decides when a step ends",
    "gradient_clipping": "set clip_norm in [train]",
    "optimizer": "set optimizer, learning_rate, betas, eps and weight_decay in [train]",
    "scheduler": "set schedule, warmup, cooldown and min_rate in [train]",
    "bf16": "set precision in [train]",
    "torch_autocast": "set precision in [train]",
    "amp": "set precision in [train]",
    "activation_checkpointing": "set gradient_checkpointing in [train]",
    "fp16": 'set precision = "bfloat16" in [train]; float16 would need a loss scale',
    "zero_optimization.stage": "set zero_stage in [train.options]",
    "zero_optimization.offload_optimizer.device": "set offload in [train.options]",
    "zero_optimization.offload_param.device": "set offload in [train.options]",
    "checkpoint.load_universal": "remove it: checkpoints are always converted if the number of processes changes",
    "zero_optimization.compute_grad_norm": "remove it, because the norm shows whether a step is bad",
    "tensor_parallel": "remove it, because only data parallelism is supported",
    "sequence_parallel_size": "remove it, because only data parallelism is supported",
    "pipeline": "remove it, because only data parallelism is supported",
}
# Other tables and values at the top of DeepSpeed's configuration. DeepSpeed passes over a name that it does not know,
# and over `zero_optimization = true`.
DEEPSPEED_TABLES = frozenset(
    {
        "aio",
        "checkpoint",
        "comet",
        "comms_logger",
        "compression_training",
        "csv_monitor",
        "data_types",
        "eigenvalue",
        "flops_profiler",
        "tensorboard",
        "timers",
        "wandb",
        "zero_optimization",
    }
)
DEEPSPEED_VALUES = frozenset(
    {
        "communication_data_type",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "gradient_allreduce_op",
        "gradient_predivide_factor",
        "graph_harvesting",
        "log_level",
        "memory_breakdown",
        "prescale_gradients",
        "sparse_gradients",
        "steps_per_print",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    }
)


@frozen(kw_only=True)
class DeepSpeedOptions:
    """`[train.options]` of the trainer `deepspeed`.

    Attributes:
        zero_stage: What is split among the processes instead of copied to each: 0 nothing, 1 the optimizer's states, 2
            also the gradients, 3 also the weights. Raise it for a model that does not fit; a higher stage takes less
            memory and more communication.
        offload: What is kept in main memory instead of GPU memory: "optimizer" its states (from stage 1), "all" also
            the weights (stage 3). This fits larger models and is slower.
        micro_batch_tokens: Maximum number of tokens in a micro-batch of one process, padding included; it always holds
            at least one sequence. Lower it if a GPU runs out of memory. Not used if `micro_batch_size` is set.
        config: Any other setting of DeepSpeed, as in its JSON configuration.
    """

    zero_stage: Literal[0, 1, 2, 3] = field(default=2, metadata=_HOW)
    offload: Literal["none", "optimizer", "all"] = field(default="none", metadata=_HOW)
    micro_batch_tokens: int = field(default=8192, validator=validators.gt(0), metadata=_HOW)
    config: Mapping[str, Any] = field(factory=dict)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between fields, as (key, message)."""
        if self.offload == "all" and self.zero_stage != 3:
            yield "offload", f'"all" needs zero_stage = 3, not {self.zero_stage}: only stage 3 splits the weights'
        if self.offload == "optimizer" and self.zero_stage == 0:
            yield "offload", '"optimizer" needs zero_stage = 1, 2 or 3: stage 0 splits nothing'
        for path in _paths(self.config):
            found = ELSEWHERE.get(path) or ELSEWHERE.get(path.partition(".")[0])
            if found:
                yield "config", f"{path} cannot be set here: {found}"
        for name, value in self.config.items():
            known = DEEPSPEED_TABLES | DEEPSPEED_VALUES
            if name in DEEPSPEED_TABLES and not isinstance(value, Mapping):
                yield "config", f"{name} is a table in DeepSpeed's configuration, not {value!r}: {{ {name} = {{ … }} }}"
            elif name not in known and not any(path.partition(".")[0] == name for path in ELSEWHERE):
                close = closest(name, known)
                hint = f", did you mean {close}?" if close else ": remove it"
                yield "config", f"{name}: DeepSpeed has no such setting{hint}"


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
        summary="trains all weights or an adapter in one process, on the CPU or one GPU",
        options=LocalOptions,
        factory="modelwright.plugins.trainers.local:LocalTrainer",
        needs="modelwright[train]",
        launcher="python",
        adapters=True,
        quantizations=("nf4", "int8", "fp8"),
        shapes="modelwright.plugins.trainers.memory:planned_shapes",
    )
    yield TrainerSpec(
        name="deepspeed",
        summary="DeepSpeed ZeRO over several processes, on GPUs or CPUs, on one or several machines",
        options=DeepSpeedOptions,
        factory="modelwright.plugins.trainers.deepspeed.trainer:DeepSpeedTrainer",
        needs="modelwright[deepspeed]",
        launcher="deepspeed",
        adapters=True,
        quantizations=("nf4",),
        shapes="modelwright.plugins.trainers.memory:planned_shapes",
    )
