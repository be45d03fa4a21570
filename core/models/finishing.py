"""The last touches of a model's folder: its weights in the base's dtype, and every token that ends a turn.

Training and merging compute in float32. Rounded to the dtype of the base, the registered model has the size of its
base, and what was evaluated, what is served and what is exported are the same numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from modelwright.core.api import files
from modelwright.core.api.errors import UsageError
from modelwright.core.api.hf_folder import CONFIG, WEIGHTS_INDEX, text_value
from modelwright.core.extras import require

GENERATION_CONFIG = "generation_config.json"
DTYPES = ("float32", "bfloat16", "float16")
# By their names in the headers of safetensors files.
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def round_like(folder: Path, base: Path) -> str | None:
    """Round a model's weights to the dtype that each has in its base; new ones to that of most of the base's weights.

    Some models keep a few tensors in float32 beside others in bfloat16, so each tensor is looked up. One that has
    weights too large for float16 stays in float32.

    Args:
        folder: the model, of which the files are replaced one by one.
        base: a whole model in Hugging Face layout.

    Returns:
        The dtype of most of the weights; None if the base has none that are rounded.
    """
    found, most = _dtypes(base)
    if most is None:
        return None
    _convert(folder, lambda name: found.get(name, most), most, keep_large=True)
    return most


def round_weights(folder: Path, dtype: str) -> None:
    """Round all of a model's weights to a dtype, one of `DTYPES`; the files are replaced one by one.

    Raises:
        UsageError: a weight is too large for float16.
    """
    _convert(folder, lambda _: dtype, dtype, keep_large=False)


def weights_dtype(folder: Path) -> str | None:
    """The dtype of most weights in a folder, such as "bfloat16"; None if they have none of these."""
    return _dtypes(folder)[1]


def _dtypes(folder: Path) -> tuple[dict[str, str], str | None]:
    """The dtype of each tensor of floating-point numbers in a folder, and that of most numbers."""
    found, sizes = dict[str, str](), Counter[str]()
    for file in sorted(folder.glob("*.safetensors")):
        with require("safetensors").safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(name)
                if dtype := _NAMES.get(part.get_dtype()):
                    found[name] = dtype
                    sizes[dtype] += math.prod(part.get_shape())
    return found, max(sizes, key=sizes.__getitem__, default=None)


def _convert(folder: Path, dtype_of: Callable[[str], str], most: str, *, keep_large: bool) -> None:
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        total += _convert_file(file, dtype_of, keep_large=keep_large)
    index = files.read_json(folder / WEIGHTS_INDEX)
    if index is not None:
        index["metadata"] = {**index.get("metadata", {}), "total_size": total}
        files.write_json(folder / WEIGHTS_INDEX, index)
    config = files.read_json(folder / CONFIG)
    if config is not None and _set_dtype(config, most):
        files.write_json(folder / CONFIG, config)


def _convert_file(file: Path, dtype_of: Callable[[str], str], *, keep_large: bool) -> int:
    """Round one file; the size of its tensors in bytes."""
    torch, safetensors = require("torch"), require("safetensors")
    tensors, changed = {}, False
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            tensor = opened.get_tensor(name)
            wanted = getattr(torch, dtype_of(name))
            if tensor.is_floating_point() and tensor.dtype != wanted:
                rounded = tensor.to(wanted)
                fits = torch.equal(rounded.isinf(), tensor.isinf())
                if not fits and not keep_large:
                    largest = tensor.abs().max().item()
                    raise UsageError(
                        f"{name} has weights up to {largest:.3g}, too large for {dtype_of(name)}: choose bfloat16"
                    )
                tensor, changed = (rounded, True) if fits else (tensor, changed)
            tensors[name] = tensor
    if changed:
        temporary = files.temporary_name(file)
        require("safetensors.torch").save_file(tensors, temporary, metadata=metadata)
        files.sync_file(temporary)
        temporary.replace(file)
        files.sync_folder(file.parent)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _set_dtype(config: dict[str, Any], dtype: str) -> bool:
    """Write the dtype into a config, and into those of its parts that have one; whether anything changed."""
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    parts = [part for part in config.values() if isinstance(part, dict)]
    named = [(part, name) for part in parts for name in ("dtype", "torch_dtype") if name in part]
    places = [(config, key), *named]
    before = [place.get(name) for place, name in places]
    for place, name in places:
        place[name] = dtype
    return before != [dtype] * len(places)


def missing_stops(folder: Path, stops: Collection[int]) -> frozenset[int]:
    """The tokens of `stops` that a model's generation config does not list."""
    return frozenset(stops) - frozenset(_listed(_generation(folder)))


def complete_generation_config(folder: Path, stops: Collection[int]) -> None:
    """List every token that ends a turn in a model's generation config, which transformers and vLLM stop at.

    A template often ends turns by another token than the end-of-sequence token in config.json.

    Args:
        folder: a model in Hugging Face layout.
        stops: the tokens that end an answer, as `Renderer.stop_token_ids`.
    """
    if missing_stops(folder, stops):
        settings = _generation(folder)
        every = sorted({*_listed(settings), *stops})
        eos = every if len(every) > 1 else every[0]
        files.write_json(folder / GENERATION_CONFIG, {**settings, "eos_token_id": eos})


def _generation(folder: Path) -> dict[str, Any]:
    """A model's generation config; what transformers makes of config.json if there is none."""
    settings: dict[str, Any] | None = files.read_json(folder / GENERATION_CONFIG)
    if settings is not None:
        return settings
    config = files.read_json(folder / CONFIG) or {}
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: value for key in keys if (value := text_value(config, key)) is not None}


def _listed(settings: Mapping[str, Any]) -> list[int]:
    eos = settings.get("eos_token_id")
    return [] if eos is None else eos if isinstance(eos, list) else [eos]
