"""What is known of a model's folder in Hugging Face layout: the names of its files, and the numbers of its config.

Checking a whole folder is `core.models.hf_folder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modelwright.core.api.wording import listed

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
# An adapter's, as peft names them.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Unpickling runs any code that the file names: weights in these formats are never read, and no registry takes them.
PICKLED_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
# With them, weights that other programs read and this one does not.
_OTHER_WEIGHTS = (*PICKLED_SUFFIXES, ".bin.index.json", ".gguf", ".h5", ".msgpack")

# The names that families of models have for their context length in config.json.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


def has_weights(folder: Path) -> bool:
    """Whether a folder has a whole model's weights in safetensors, in one file or in shards."""
    return any((folder / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX))


def other_weights(folder: Path) -> str | None:
    """Why a folder's weights are not read: they are in other formats than safetensors. None if it has no such files."""
    names = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(_OTHER_WEIGHTS))
    if not names:
        return None
    if ggufs := [name for name in names if name.lower().endswith(".gguf")]:
        return f"the weights are in {listed(ggufs, 4)}: name that file itself instead of its folder"
    return (
        f"the weights are in {listed(names, 4)}, but only safetensors files are read (a pickle can run any code): "
        "convert them with save_pretrained() of a recent transformers"
    )


def is_adapter(names: Iterable[str]) -> bool:
    """Whether a model's files are an adapter's: they include peft's config, and no weights of a whole model."""
    names = set(names)
    return ADAPTER_CONFIG in names and not names & {WEIGHTS, WEIGHTS_INDEX}


def text_value(config: Mapping[str, Any], key: str) -> Any:
    """A value of the language model that a config describes; None if it has none.

    Composite configs, of models that also see or hear, have the language model's values in `text_config`. Where both
    places have one, `text_config` counts, as in transformers.

    Args:
        config: the content of config.json, or `to_dict()` of a config of transformers.
        key: such as "hidden_size".
    """
    text = config.get("text_config")
    value = text.get(key) if isinstance(text, Mapping) else None
    return config.get(key) if value is None else value


def context_length(config: Mapping[str, Any]) -> int | None:
    """The maximum number of tokens of prompt and answer together; None if the config gives no limit.

    Args:
        config: as in `text_value`.
    """
    values = (text_value(config, key) for key in CONTEXT_KEYS)
    # Some write -1 if there is no limit.
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The number of tokens that the config gives the model embeddings for; None if it does not say.

    Args:
        config: as in `text_value`.
    """
    value = text_value(config, "vocab_size")
    return value if isinstance(value, int) else None
