"""The built-in engines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from attrs import field, frozen, validators

from modelwright.core.api.components import EngineSpec
from modelwright.core.api.hooks import hookimpl


@frozen(kw_only=True)
class TorchOptions:
    """The options of engine `torch`.

    Attributes:
        device: of the model: "cpu", "cuda" (NVIDIA's and AMD's GPUs), "cuda:1", "xpu" (Intel's), "mps" (Apple's);
            "auto" is the first GPU that torch can use, otherwise the CPU.
        dtype: of the weights and the cache; "auto" is float32 on the CPU and bfloat16 elsewhere.
        max_batch: maximum number of requests that run at once; the others wait in order.
        threads: CPU threads for the model. None means one for a small model, whose operations are too short to share,
            and PyTorch's default for a larger one; if OMP_NUM_THREADS is set, it decides.
    """

    device: str = field(default="auto", validator=validators.instance_of(str))
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", validator=validators.in_(("auto", "float32", "bfloat16", "float16"))
    )
    max_batch: int = field(default=32, validator=validators.ge(1))
    threads: int | None = field(default=None, validator=validators.optional(validators.ge(1)))


@hookimpl
def modelwright_engines() -> Iterable[EngineSpec]:
    """The built-in engine: PyTorch in this process."""
    yield EngineSpec(
        name="torch",
        summary="PyTorch in this process, batched at every iteration",
        options=TorchOptions,
        factory="modelwright.plugins.engines.torch_engine:TorchEngine",
        needs="modelwright[train]",
        abilities=frozenset({"temperature", "top_p", "top_k", "stop", "seed", "logprobs"}),
        adapters=True,
    )
