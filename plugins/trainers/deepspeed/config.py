"""What DeepSpeed is configured with: the options of the trainer, and any setting of its own from the run file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelwright.core.api import TrainSettings, UsageError
from modelwright.plugins.trainers import DeepSpeedOptions


def zero_config(options: DeepSpeedOptions, settings: TrainSettings, *, low: bool) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` takes.

    Args:
        options: of the trainer.
        settings: the `[train]` table.
        low: whether the weights are bfloat16.

    Raises:
        UsageError: the options contradict one another, or `config` says what has a place of its own.
    """
    for key, problem in options.problems():
        raise UsageError(f"[train.options] {key}: {problem}")
    if settings.compile and options.zero_stage == 3:
        raise UsageError(
            "[train] compile = true does not work with zero_stage = 3, which swaps the weights in and out: set one of "
            "them to another value"
        )
    zero: dict[str, Any] = {"stage": options.zero_stage, "overlap_comm": False}
    if options.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if options.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    ours = {
        # Sizes that DeepSpeed only counts samples with: the loop decides how many passes a step has.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.clip_norm,
        "zero_optimization": zero,
        # An optimiser that it does not know by name is checked by the tests of this one.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": low},
        "steps_per_print": None,
    }
    return _merged(ours, options.config)


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        there = merged.get(key)
        merged[key] = _merged(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return merged
