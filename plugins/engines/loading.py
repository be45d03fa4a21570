"""Load a model folder in Hugging Face layout for inference: safetensors only, and no code from the folder."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from tokenizers import Tokenizer
from torch import Tensor

from modelwright.core.api import accelerators, open_device
from modelwright.core.api.adapters import apply_adapter, embedding_rows
from modelwright.core.api.errors import ModelwrightError
from modelwright.core.api.hf_folder import ADAPTER_CONFIG, context_length, has_weights, other_weights
from modelwright.core.api.wording import one_line
from modelwright.plugins.engines import TorchOptions

# With fewer parameters, a step is too short to be worth splitting among cores.
_SMALL = 5_000_000
# Read before any engine sets its own, because in new threads PyTorch reports the number that was set last anywhere.
_DEFAULT_THREADS = torch.get_num_threads()


@frozen(kw_only=True)
class LoadedModel:
    """A loaded model and its properties.

    Attributes:
        model: a transformers causal language model in evaluation mode.
        tokenizer: of its folder.
        device: of its weights.
        context: maximum number of tokens, prompt and answer together; None means no limit.
        vocabulary: number of token ids.
        attends: whether its state is only keys and values by position, so that caches can be joined and trimmed.
        arguments: the names of the forward pass's arguments.
        threads: number of CPU threads for it; None does not set it.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    context: int | None
    vocabulary: int
    attends: bool
    arguments: frozenset[str]
    threads: int | None

    def cache(self) -> Any:
        """Make an empty cache.

        Without the model's config, every layer keeps all positions, and the mask makes sliding windows. That takes more
        memory than a window, but lets rows of different lengths share a cache.
        """
        from transformers import DynamicCache

        return DynamicCache() if self.attends else DynamicCache(config=self.model.config)

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Run the model on tokens after the cached ones; returns the last position's logits, `[rows, vocabulary]`.

        Args:
            tokens: `[rows, new]`.
            mask: `[rows, cached + new]`, 0 for padding on the left, otherwise 1.
            positions: `[rows, new]`, counted from each row's first real token.
            cache: from `cache()`; the new tokens' state is added to it.
        """
        extra = {"position_ids": positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in extra.items() if name in self.arguments},
        )
        logits: Tensor = output.logits[:, -1, :]
        return logits


def load_model(folder: Path, options: TorchOptions, base: Path | None = None) -> LoadedModel:
    """Load a model folder or, with `base`, an adapter's folder and the weights of its base.

    The adapter stays apart from the weights, as it was trained: added to them in bfloat16, its smaller changes would be
    rounded away. For more speed, merge it: merging checks the result.

    Raises:
        ModelwrightError: the folder is incomplete or cannot be read.
        UsageError: the device does not exist.
    """
    _check_files(folder, ("config.json", "tokenizer.json"))
    _check_weights(base or folder)
    device = open_device(options.device, accelerators(), "engine 'torch'")
    dtype = _dtype(options.dtype, device)
    with _clear_errors(folder):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = _weights(base or folder, dtype)
    if base is not None:
        model = apply_adapter(model, folder).get_base_model()
    model = model.to(device).eval()
    arguments = frozenset(inspect.signature(model.forward).parameters)
    if "past_key_values" not in arguments:
        raise ModelwrightError(
            f"{folder}: {type(model).__name__} has no key-value cache: choose an engine other than 'torch'"
        )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=device,
        context=context_length(model.config.to_dict()),
        vocabulary=embedding_rows(model),
        attends=_attends(model),
        arguments=arguments,
        threads=_threads(options.threads, model),
    )


def _check_files(folder: Path, names: Sequence[str]) -> None:
    if not folder.is_dir():
        raise ModelwrightError(f"{folder}: this folder does not exist; expected a model folder in Hugging Face layout")
    for name in names:
        if not (folder / name).is_file():
            raise ModelwrightError(f"{folder}: {name} is missing; expected a model folder in Hugging Face layout")


def _check_weights(folder: Path) -> None:
    _check_files(folder, ("config.json",))
    if has_weights(folder):
        return
    if problem := other_weights(folder):
        raise ModelwrightError(f"{folder}: {problem}")
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelwrightError(
            f"{folder}: this is an adapter: load it together with its base, or merge it into the base first"
        )
    raise ModelwrightError(f"{folder}: it has no weights; expected model.safetensors")


def _weights(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with _clear_errors(folder), _no_progress_bars():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # its own error does not name them
        )
    # transformers only fills missing weights with random numbers.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelwrightError(
            f"{folder}: the weights lack {len(missing)} of {type(model).__name__}'s tensors, such as {missing[0]}; "
            "copy the model again"
        )
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        raise ModelwrightError(
            f"{folder}: the weights do not fit config.json: {name} has the shape {list(found)}, and the config makes "
            f"it {list(expected)}; copy the model again"
        )
    return model


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """Turn the libraries' errors about a damaged folder into one line that names the folder."""
    try:
        yield
    except Exception as error:
        text = one_line(error)
        raise ModelwrightError(
            f"{folder}: the model cannot be loaded: {type(error).__name__}: {text:.300}; fix its files, or copy the "
            "model again"
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _attends(model: Any) -> bool:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=model.config).layers
    )


def _threads(requested: int | None, model: Any) -> int | None:
    if requested is not None:
        return requested
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return 1 if sum(weights.numel() for weights in model.parameters()) < _SMALL else _DEFAULT_THREADS
