"""A model from a folder in Hugging Face layout: its weights where it has them, else initialised from the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from modelwright.core.api import Job, ModelwrightError, UsageError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Formats that run code when they are read, or that this program does not read at all.
OTHER_WEIGHTS = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")

_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


def load_model(job: Job) -> Any:
    """The job's model, float32, on the CPU.

    Raises:
        UsageError: the folder has no config, or weights in another format than safetensors only.
        ModelwrightError: what is there cannot be loaded, or is not whole.
    """
    transformers_logging.disable_progress_bar()
    if not (job.model / "config.json").is_file():
        raise UsageError(f"{job.model}: expected a model in Hugging Face layout, and there is no config.json")
    settings: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": job.trust_remote_code}
    if job.attention != "auto":
        settings["attn_implementation"] = job.attention
    try:
        config = AutoConfig.from_pretrained(job.model, trust_remote_code=job.trust_remote_code, local_files_only=True)
        if _has_weights(job.model):
            return _with_weights(job.model, config, settings)
        torch.manual_seed(job.seed)
        return AutoModelForCausalLM.from_config(config, **settings)
    except _LOADING_ERRORS as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelwrightError(f"{job.model}: the model cannot be loaded: {lines[0]}") from error


def _has_weights(folder: Path) -> bool:
    if any((folder / name).is_file() for name in WEIGHTS):
        return True
    others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
    if others:
        raise UsageError(
            f"{folder}: its weights are in {', '.join(others)}, and only safetensors are read (a pickle can run any "
            "code): save the model with save_pretrained() of a recent transformers first"
        )
    return False


def _with_weights(folder: Path, config: Any, settings: dict[str, Any]) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, use_safetensors=True, local_files_only=True, output_loading_info=True, **settings
    )
    # What the files lack would be drawn at random, and the model would look like a badly trained one.
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelwrightError(f"{folder}: its weights are not whole: {shown} missing")
    return model


def check_fits(model: Any, *, largest_token: int, longest: int, tokens: Path) -> None:
    """Check that the model can take the data.

    Raises:
        ModelwrightError: a token id is beyond the embeddings, or a sequence beyond the context.
    """
    embeddings = model.get_input_embeddings().weight.shape[0]
    if largest_token >= embeddings:
        raise ModelwrightError(
            f"{tokens} has the token id {largest_token}, and the model's embeddings end at {embeddings - 1}: "
            "tokenizer and model do not belong together"
        )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ModelwrightError(
            f"{tokens} has a sequence of {longest} tokens, and the model's context is {context}: "
            f"set [data.tokens] max_length to {context} or less"
        )
