"""What a training takes of its machine: the memory it needs before it starts, then its speed and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict

from modelwright.core.api import (
    AdapterSettings,
    MemorySettings,
    ModelShape,
    ModelwrightError,
    described,
    machine_memory,
    training_memory,
)
from modelwright.core.api.adapters import embedding_rows, grow_embeddings
from modelwright.plugins.trainers.model.adapter import attach
from modelwright.plugins.trainers.model.load import skeleton_of
from modelwright.plugins.trainers.model.loss import chunk_rows
from modelwright.plugins.trainers.model.weights import numbers_in
from modelwright.plugins.trainers.ranks import Ranks

# How often the speed of the device is measured again because a step was faster.
_REPEATS = 3


def model_shape(model: Any, device: str) -> ModelShape:
    """The sizes of a model, which may be on the device "meta", where it takes no memory.

    Args:
        model: a causal language model of transformers, with its adapter if it has one.
        device: kind of the device that it will be trained on, such as "cuda".
    """
    config = model.config.get_text_config(decoder=True)
    output, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    ends = {id(parameter) for module in (output, embeddings) for parameter in module.parameters()}
    body = [parameter for parameter in model.parameters() if id(parameter) not in ends]
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    head = list(output.parameters())
    width, heads = config.hidden_size, config.num_attention_heads
    each = getattr(config, "head_dim", None) or width // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    vocabulary = embedding_rows(model)
    adapted = any(not parameter.requires_grad for parameter in model.parameters())
    return ModelShape(
        parameters=_numbers(model.parameters()),
        trainable=_numbers(each for each in model.parameters() if each.requires_grad),
        matrices=_numbers(each for each in body if each.dim() > 1 and each.requires_grad != adapted),
        linear=_numbers(each for each in linear if id(each) not in ends and each.requires_grad != adapted),
        head=_numbers(head),
        head_trained=any(parameter.requires_grad for parameter in head),
        layers=config.num_hidden_layers,
        width=width,
        attention=2 * (heads + keys) * each,
        inner=_inner(config),
        vocabulary=vocabulary,
        rows=None if getattr(config, "final_logit_softcapping", None) else chunk_rows(vocabulary, device),
    )


def _numbers(parameters: Any) -> int:
    return sum(map(numbers_in, parameters))


def _inner(config: Any) -> int:
    """The size of the MLP's inner layer, of all experts together that a token is sent to."""
    inner: Any = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    inner = max(inner) if isinstance(inner, list | tuple) else inner or 4 * config.hidden_size
    chosen = getattr(config, "num_experts_per_tok", None)
    if not chosen:
        return int(inner)
    shared = getattr(config, "shared_expert_intermediate_size", None) or 0
    return int((getattr(config, "moe_intermediate_size", None) or inner) * chosen + shared)


def planned_shapes(
    folder: str, *, adapter: Mapping[str, Any] | None, vocabulary: int | None, trust_remote_code: bool
) -> dict[str, Any]:
    """The sizes of a model in training, from its config.json alone: see `TrainerSpec.shapes`.

    Args:
        folder: has config.json.
        adapter: the table `[adapter]`; None for its defaults.
        vocabulary: number of tokens of the tokenizer, if that is known.
        trust_remote_code: whether the model may run code of its own.

    Returns:
        The attributes of `ModelShape`, as `full` with all weights trained, and as `adapter`.
    """
    model = skeleton_of(Path(folder), trust_remote_code=trust_remote_code)
    grow_embeddings(model, vocabulary or 0)
    full = model_shape(model, "cuda")
    attach(model, AdapterSettings(**(adapter or {})), seed=0)
    return {"full": asdict(full), "adapter": asdict(model_shape(model, "cuda"))}


def check_memory(
    shape: ModelShape, how: MemorySettings, device: torch.device, *, on_machine: int, reading: int = 0
) -> None:
    """Check that there is enough memory for this process: for what it holds as long as it trains, and for reading it.

    Args:
        shape: of the model.
        how: it is trained.
        device: that it computes on.
        on_machine: number of processes on this machine.
        reading: bytes of main memory that the process takes to read the model.

    Raises:
        ModelwrightError: there is not.
    """
    needed = training_memory(shape, how)
    free = machine_memory().free // on_machine
    host = needed.host + (needed.states if device.type == "cpu" else 0)
    if host > free:
        raise _too_little("this machine", host, free, shape, how)
    if reading > free:
        raise ModelwrightError(
            f"not enough memory on this machine: each process reads the whole model ({_gb(reading)}), and "
            f"{_gb(free)} is free for each: {_to_read_less(how)}"
        )
    if device.type in ("cuda", "xpu"):
        free, _ = torch.get_device_module(device).mem_get_info(device)
        if needed.states > free:
            raise _too_little(described(device), needed.states, free, shape, how)


def _to_read_less(how: MemorySettings) -> str:
    if how.stage == 3:  # whole, because its embeddings have to grow
        return (
            "its embeddings must grow, which split weights cannot: add the tokens to the base with "
            "resize_token_embeddings() and save it, or use fewer processes per machine"
        )
    return (
        'set trainer = "deepspeed" and zero_stage = 3 in [train.options], so that the processes split the model as '
        "they read it, or use fewer processes per machine"
    )


def _too_little(where: str, needed: int, free: int, shape: ModelShape, how: MemorySettings) -> ModelwrightError:
    less = []
    if not shape.adapted:
        less.append("train an [adapter]")
    elif how.frozen in ("float32", "bfloat16"):
        less.append("set quantization in [model]")
    if how.stage < 3:
        less.append('use more processes with trainer = "deepspeed" and zero_stage = 3 in [train.options]')
    if how.offload != "all":
        less.append("set offload there" if how.stage < 3 else "set offload in [train.options]")
    remedy = ", or ".join(filter(None, [", ".join(less[:-1]), *less[-1:]])) or "use more processes"
    return ModelwrightError(
        f"not enough memory on {where}: weights, gradients and optimizer take {_gb(needed)} in each process, and "
        f"{_gb(free)} is free for each: {remedy}"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


class Meter:
    """Measures speed and memory of one process of a training, and the speed of all of them together.

    MFU (model FLOPs utilization; A. Chowdhery et al., "PaLM", 2022, appendix B) is the model's own arithmetic as a
    share of what the hardware can do: for each token, 6 operations per weight that it is multiplied by, plus
    6 · layers · width · length for causal attention, half of full attention. Recomputed activations do not count. The
    weights of the output layer count for trained tokens only, because it computes no others. A frozen weight under
    an adapter takes 4 operations, because it has no gradient. Of experts, those count that a token is sent to. What the
    hardware can do is measured by multiplying matrices in the same precision; again, if a step is faster, because the
    machine may have been busy. There is no MFU for a step that is still faster than the device.

    Args:
        model: a causal language model of transformers.
        device: its device.
        precision: of its forward pass.
        length: average length of the training documents, in tokens.
        ranks: the processes that train together.
    """

    def __init__(
        self, model: Any, device: torch.device, precision: torch.dtype, *, length: float, ranks: Ranks
    ) -> None:
        self._device = device
        self._length = length
        self._ranks = ranks
        embeddings = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
        output = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
        body = [each for each in model.named_parameters() if id(each[1]) not in embeddings | output]
        config = model.config.get_text_config(decoder=True)
        used = _used_experts(config)
        self._counted = [
            (numbers_in(parameter) * (used if ".experts." in name else 1.0), parameter.requires_grad)
            for name, parameter in body
        ]
        head = model.get_output_embeddings().parameters()
        self._output = [(numbers_in(parameter), parameter.requires_grad) for parameter in head]
        parameters = list(model.parameters())
        self.parameters = _numbers(parameters)
        self.trainable = _numbers(each for each in parameters if each.requires_grad)
        self._attention = 6 * getattr(config, "num_hidden_layers", 0) * getattr(config, "hidden_size", 0)
        self._precision = precision
        self._peak = peak_flops(device, precision)
        self._repeats = _REPEATS

    def facts(self) -> dict[str, Any]:
        """The size of the model and the peak speed of the device, for the event `started`."""
        return {
            "parameters": self.parameters,
            "trainable": self.trainable,
            "peak_flops": float(f"{self._peak:.4g}"),
        }

    def flops(self, tokens: int, trained_tokens: int) -> float:
        """The operations of a step with this many tokens, of which the output layer computes the trained ones."""
        body = _operations(self._counted) + self._attention * self._length
        return body * tokens + _operations(self._output) * trained_tokens

    def measured(self, tokens: int, trained_tokens: int, began: float) -> dict[str, Any]:
        """Time, MFU and memory for the event `step`; `began` is a time of `time.perf_counter`."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        seconds = time.perf_counter() - began
        facts = {"seconds": round(seconds, 6), "memory": self.memory()}
        reached = self.flops(tokens, trained_tokens) / (seconds * self._ranks.size)
        if reached > self._peak and self._repeats:
            self._repeats -= 1
            self._peak = max(self._peak, peak_flops(self._device, self._precision))
        return facts if reached > self._peak else {**facts, "mfu": float(f"{reached / self._peak:.4g}")}

    def memory(self) -> int:
        """Peak memory so far, in bytes: of the GPU, or of the process on a CPU."""
        if self._device.type in ("cuda", "xpu"):
            return int(torch.get_device_module(self._device).max_memory_allocated(self._device))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _operations(weights: Sequence[tuple[float, bool]]) -> float:
    return sum(size * (6 if trained else 4) for size, trained in weights)


def _used_experts(config: Any) -> float:
    """The share of its experts that a model sends a token to; 1 if its configuration does not say."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((number for name in names if (number := getattr(config, name, None))), 0)
    return (getattr(config, "num_experts_per_tok", None) or experts) / experts if experts else 1.0


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Operations per second that a device reaches in multiplying square matrices: the best of several attempts."""
    size, repeats = (8192, 5) if device.type != "cpu" else (768, 8)
    one = torch.ones(size, size, device=device, dtype=precision)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        one @ one
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[1:])  # the first one also loads the kernel
