"""What a model's frozen weights are held in: a lower dtype or quantized, and how gradients pass through them.

Trained weights are float32 wherever they are stepped. The weights under an adapter are only multiplied by, so that
bfloat16 is enough, and the linear layers can be quantized (T. Dettmers et al., "QLoRA", 2023): bitsandbytes has nf4,
torchao 8-bit integers and floats. The adapter belongs to the base as it was: nothing quantized is ever saved.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from modelwright.core.api import UsageError

# What a CPU's flags call instructions that multiply bfloat16; without them, it takes longer than float32.
_CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; False if torch is too old to say."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in _CPU_BFLOAT16)


def compute_in(
    requested: str, dtype: str | None, *, device: str, name: str, supported: bool, native: bool
) -> tuple[torch.dtype, torch.dtype]:
    """The precision of the forward pass, and what frozen weights are held in.

    Args:
        requested: `[train] precision`.
        dtype: `[model] dtype` of a run with an adapter; None if all weights are trained.
        device: the type of the device: "cpu", "cuda", "xpu", "mps".
        name: what its maker calls it.
        supported: whether it can compute in bfloat16 at all.
        native: whether a CPU does so faster than in float32.

    Raises:
        UsageError: bfloat16 is requested, and the device does not have it.
    """
    wanted = "[train] precision" if requested == "bfloat16" else "[model] dtype" if dtype == "bfloat16" else None
    if wanted and not supported:
        raise UsageError(f'{wanted}: {name} has no bfloat16: set it to "float32"')
    automatic = device not in ("cpu", "mps") or (device == "cpu" and dtype == "auto" and native)
    low = supported and (wanted is not None or (requested == "auto" and automatic))
    precision = torch.bfloat16 if low else torch.float32
    return precision, torch.float32 if dtype in (None, "float32") else precision


def quantization_config(kind: str, precision: torch.dtype) -> Any:
    """The configuration by which transformers quantizes linear layers as it reads them.

    Args:
        kind: "nf4", "int8" or "fp8".
        precision: in which the layers compute.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision,
        )
    from torchao import quantization

    # Not LLM.int8, which quantizes the inputs as well.
    return TorchAoConfig(
        quantization.Int8WeightOnlyConfig() if kind == "int8" else quantization.Float8WeightOnlyConfig()
    )


class _FrozenProduct(torch.autograd.Function):
    """A linear layer with quantized weights, which are dequantized again for the backward pass.

    torchao's own keeps the dequantized weights of every layer until then, which are as large as the model.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: torch.nn.Linear) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return torch.nn.functional.linear(inputs, layer.weight.dequantize().to(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        return (gradient @ ctx.layer.weight.dequantize().to(gradient.dtype)).to(ctx.dtype), None


def train_through(model: Any, kind: str) -> None:
    """Make the quantized layers of a model let gradients through to the adapters before them, and keep nothing else.

    Args:
        model: as transformers quantized it; changed in place.
        kind: of its quantization.
    """
    if kind == "nf4":
        from bitsandbytes.nn import Linear4bit

        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                # On some CPUs it packs its weights for inference in the first evaluation. There is no way back, and
                # later backward passes would silently leave the layer out.
                layer.support_avx512bf16_for_cpu = False
        return
    from torchao.utils import TorchAOBaseTensor

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and isinstance(layer.weight, TorchAOBaseTensor):
            computing: Any = layer
            computing.forward = partial(_through, layer)


def _through(layer: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    product: Any = _FrozenProduct
    output: torch.Tensor = product.apply(inputs, layer)
    return output


def train_in_float32(model: Any) -> None:
    """Hold everything that is trained in float32, beside frozen weights in bfloat16.

    peft makes embeddings and whole modules in the dtype of the weights that they belong to. An adapter also casts its
    inputs to its own dtype first; that is left to autocast, because those copies would be kept for the backward pass.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = model.dtype == torch.float32


def numbers_in(parameter: torch.Tensor) -> int:
    """How many numbers a parameter has: of one that ZeRO-3 has split, in all processes; of a packed one, unpacked."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return math.prod(state.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))
