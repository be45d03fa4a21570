"""What a trainer gets and returns: the job and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from modelwright.core.api.train_settings import AdapterSettings, TrainSettings

Quantization = Literal["nf4", "int8", "fp8", "int4"]
# The kinds of quantization that a trainer may offer, and the package that each needs.
QUANTIZERS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}


@frozen(kw_only=True)
class Job:
    """One training job, as each of its processes sees it.

    Attributes:
        folder: The trainer's own folder, for checkpoints. It outlives a killed process.
        model: A folder in Hugging Face layout. If it has no weights, they are initialized from `seed`.
        output: The folder to write the trained model to, with `files.writing_folder`.
        tokens: The training tokens (a `TokenFolder`). If it has packs, a sequence is a pack, and the trainer keeps its
            documents apart: no document attends to another, and positions restart in each.
        holdout: Tokens held out to measure the loss (a `TokenFolder`, packed or not); None if there are none.
        settings: The `[train]` table.
        adapter: The `[adapter]` table; None if the whole model is trained. With it, `output` gets the adapter without
            the model: `adapter_config.json` and `adapter_model.safetensors`, as peft writes them, and the model's
            `config.json`.
        vocabulary: Number of tokens of the tokenizer. A model with fewer rows of embeddings gets that many; the new
            rows start as the mean of the old. None leaves them as they are.
        hub: Public name of `model`, `org/name@COMMIT`, if it is from the hub.
        seed: Seed of initialization, order and dropout.
        rope_scaling: How the rotary positions of `model` are stretched, with the keys of transformers'
            `rope_parameters`, `rope_type` and `factor` among them; None leaves them as they are. The trained model's
            config has them.
        dtype: What frozen weights under an adapter are held in: "float32", "bfloat16", or "auto" for the trainer's
            choice.
        quantization: What their linear layers are held in: one of `TrainerSpec.quantizations`; None for `dtype`.
        attention: The attention implementation to use; "auto" leaves it to the trainer.
        trust_remote_code: Whether the model may run code of its own.
        fingerprint: Of all inputs. A checkpoint with another fingerprint is not resumed.
        emit: Writes an event: `emit(kind, data)`. Progress is shown from `started` {steps, parameters, trainable,
            device}, `step` {step, steps, loss, tokens, seconds, …}, `resumed` {step} and `checkpoint` {step}; other
            kinds are only recorded.
        stopping: Whether someone requested a stop. Call it at the end of each step and before each micro-batch.
    """

    folder: Path
    model: Path
    output: Path
    tokens: Path
    holdout: Path | None
    settings: TrainSettings
    adapter: AdapterSettings | None = None
    vocabulary: int | None = None
    hub: str | None = None
    seed: int
    rope_scaling: Mapping[str, Any] | None = None
    dtype: str = "auto"
    quantization: Quantization | None = None
    attention: str = "auto"
    trust_remote_code: bool = False
    fingerprint: str
    emit: Callable[[str, Mapping[str, Any]], None]
    stopping: Callable[[], bool]


@frozen(kw_only=True)
class Trained:
    """How a training job ended.

    Attributes:
        finished: False if it stopped on request, after a checkpoint.
        step: Optimizer steps done.
        steps: Optimizer steps planned.
        loss: The last step's mean loss over trained tokens, in nats.
        holdout_loss: The same on the held-out data, if there is any.
    """

    finished: bool
    step: int
    steps: int
    loss: float | None = None
    holdout_loss: float | None = None
