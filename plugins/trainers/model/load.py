"""Load a model from a folder in Hugging Face layout: its weights if it has any, else initialized from the seed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from modelwright.core.api import Job, ModelwrightError, UsageError
from modelwright.core.api.adapters import embedding_rows
from modelwright.core.api.hf_folder import context_length, has_weights, other_weights, vocabulary_size
from modelwright.core.api.wording import listed, one_line

# Maximum length of a library's message that is passed on, in characters: some list every class that they know.
_LONGEST = 300


def attention_for(requested: str, *, on_gpu: bool, packed: bool, flash: bool) -> str | None:
    """The attention implementation for a training; None leaves it to the model.

    Args:
        requested: what the run requests; "auto" for the best that is available.
        on_gpu: whether it computes on a GPU.
        packed: whether sequences hold several documents, which other implementations separate by a dense mask.
        flash: whether the package flash-attn is installed and can be used.

    Raises:
        UsageError: the requested implementation is not available.
    """
    if requested == "flash_attention_2" and not (on_gpu and flash):
        lacks = "the package flash-attn (pip install flash-attn)" if on_gpu else "a GPU"
        raise UsageError(f'[model] attention: "flash_attention_2" needs {lacks}: set it to "auto"')
    if requested == "flex_attention" and not on_gpu:
        raise UsageError('[model] attention: "flex_attention" has no backward pass on a CPU: set it to "auto"')
    if requested != "auto":
        return requested
    if on_gpu and flash:
        return "flash_attention_2"
    return "flex_attention" if on_gpu and packed else None


# Makes the context in which a model's weights are read.
Reading = Callable[[], AbstractContextManager[object]]


def load_model(
    job: Job, *, on_gpu: bool = False, packed: bool = False, low: bool = False, sharing: Reading = nullcontext
) -> Any:
    """The job's model, in float32 on the CPU, or split as `sharing` does it.

    Args:
        job: has the model's folder.
        on_gpu: whether it will compute on a GPU.
        packed: whether sequences hold several documents.
        low: whether it will compute in bfloat16.
        sharing: makes the context in which weights are read. Not used if the embeddings have to grow afterwards, which
            split weights cannot.

    Raises:
        UsageError: the folder has no config, or has weights only in formats other than safetensors.
        ModelwrightError: the model cannot be loaded, is incomplete, or its files do not fit together.
    """
    transformers_logging.disable_progress_bar()
    settings: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": job.trust_remote_code}
    # Its kernels take 16-bit numbers only.
    flash = low and importlib.util.find_spec("flash_attn") is not None
    attention = attention_for(job.attention, on_gpu=on_gpu, packed=packed, flash=flash)
    if attention is not None:
        settings["attn_implementation"] = attention
    config = _config(job.model, trust_remote_code=job.trust_remote_code)
    has_weights = _has_weights(job.model)
    grows = (job.vocabulary or 0) > (vocabulary_size(config.to_dict()) or 0)
    with _clear_errors(job.model, "the model cannot be loaded", "check its config.json, or copy the model again"):
        if has_weights:
            with nullcontext() if grows else sharing():
                return _with_weights(job.model, config, settings)
        torch.manual_seed(job.seed)
        return AutoModelForCausalLM.from_config(config, **settings)


def skeleton(job: Job) -> Any:
    """The job's model without values; see `skeleton_of`."""
    return skeleton_of(job.model, trust_remote_code=job.trust_remote_code)


def skeleton_of(folder: Path, *, trust_remote_code: bool) -> Any:
    """A model without values, on torch's device "meta": gives its shapes before any weights are read.

    Raises:
        UsageError: the folder has no config.
        ModelwrightError: its config cannot be used.
    """
    config = _config(folder, trust_remote_code=trust_remote_code)
    with (
        _clear_errors(folder, "the model cannot be loaded", "check its config.json, or copy the model again"),
        torch.device("meta"),
    ):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _config(folder: Path, *, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: expected a model in Hugging Face layout, but there is no config.json")
    with _clear_errors(folder, "its config.json cannot be used", "fix the file, or copy the model again"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)


@contextmanager
def _clear_errors(folder: Path, what: str, to_do: str) -> Iterator[None]:
    """Turn any error of the libraries about a folder into one line that names it."""
    try:
        yield
    except ModelwrightError:
        raise
    except Exception as error:
        text = one_line(error)
        if "trust_remote_code" in text:
            reason, to_do = "it comes with its own code, which this version does not run", "choose another base"
        elif text.startswith("Unrecognized configuration class"):
            kind = json.loads((folder / "config.json").read_bytes())["model_type"]
            reason, to_do = f"its model_type {kind!r} is not a causal language model", "choose another base"
        else:
            reason = _reason(error)
        raise ModelwrightError(f"{folder}: {what}: {reason}; {to_do}") from error


def _reason(error: Exception) -> str:
    # transformers' configs check themselves with a class whose cause has the reason.
    if type(error).__name__.startswith("StrictDataclass") and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = one_line(error).partition(" You may consider")[0].removesuffix(".")
    # The text of a KeyError or a similar error says little without its type.
    if not text or isinstance(error, LookupError | ArithmeticError | AttributeError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _has_weights(folder: Path) -> bool:
    if has_weights(folder):
        return True
    if problem := other_weights(folder):
        raise UsageError(f"{folder}: {problem}")
    return False


def _with_weights(folder: Path, config: Any, settings: dict[str, Any]) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # its own error does not name them
        **settings,
    )
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        more = len(info["mismatched_keys"]) - 1
        others = f" (and {more} more like it)" if more else ""
        raise ModelwrightError(
            f"{folder}: its weights do not match its config.json: {name} has the shape {list(found)}, but the config "
            f"says {list(expected)}{others}: they belong to different models, or one was changed; copy the model again"
        )
    # Missing tensors would get random values, and the model would look like a badly trained one.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelwrightError(
            f"{folder}: its weights are incomplete: missing {listed(missing, 3)}; copy the model again"
        )
    return model


def check_fits(model: Any, *, largest_token: int, longest: int, tokens: Path) -> None:
    """Check that the model can take the data.

    Raises:
        ModelwrightError: a token id is beyond the embeddings, or a sequence beyond the context.
    """
    embeddings = embedding_rows(model)
    if largest_token >= embeddings:
        raise ModelwrightError(
            f"{tokens} has the token id {largest_token}, but the model's embeddings end at {embeddings - 1}: tokenizer "
            "and model do not belong together; use the tokenizer that came with the model"
        )
    context = context_length(model.config.to_dict())
    if context is not None and context < longest:
        raise ModelwrightError(
            f"{tokens} has a sequence of {longest} tokens, but the model's context is {context}: set [data.tokens] "
            f"max_length to {context} or less"
        )
