"""A base model's `config.json`, looked at without transformers: what would be met only when the model is loaded."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
# The most common keys, by the least that they can be. A list has a value for each layer, null leaves it to the model.
_WHOLE = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 1,
    "intermediate_size": 0,
    "max_position_embeddings": None,
}
# Where transformers 5 lists them, by version.
_LISTS = ("auto_mappings.py", "configuration_auto.py")


class WrongError(Exception):
    """Something in the folder is not as it must be."""


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object as the libraries do, which take UTF-8 without a byte order mark only.

    Raises:
        WrongError: the file holds something else.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        raise WrongError(f"{path.name} begins with a byte order mark: save it as UTF-8 without one")
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise WrongError(f"{path.name} is not UTF-8: byte {error.start + 1} is 0x{byte:02x}; save it as such") from None
    except RecursionError:
        raise WrongError(f"{path.name} is not JSON that can be read: it nests too deep; copy it again") from None
    except ValueError as error:
        raise WrongError(f"{path.name} is not JSON: {error}; mend it, or copy it again") from None
    if not isinstance(value, dict):
        raise WrongError(f"{path.name} must hold a JSON object, not {type(value).__name__}: copy it again")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's `config.json`.

    Raises:
        WrongError: it is missing, names no architecture, or one that transformers does not know.
        OSError: it cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise WrongError(f"there is no {CONFIG}: expected a model folder in Hugging Face layout")
    config = read_object(folder / CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise WrongError(f'{CONFIG} names no architecture: expected a key "model_type", such as "llama"')
    names = _architectures()
    if not _has_own_code(config) and names and f'"{kind}"' not in names:
        version = importlib.metadata.version("transformers")
        raise WrongError(
            f"{CONFIG} has the model_type {_shown(kind)}, which transformers {version} does not know: correct it, or "
            "install a newer one (pip install -U transformers)"
        )
    return config


def number_problems(config: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """What is wrong with a config's numbers, those of its `text_config` included.

    Args:
        config: of an architecture that transformers knows; of one with code of its own nothing is known.
        where: what stands before a key in a line.
    """
    if _has_own_code(config):
        return
    wrong = [key for key in _WHOLE if not _is_whole(config.get(key), _WHOLE[key])]
    for key in wrong:
        least = _WHOLE[key]
        beginning = "" if least is None else f" from {least}"
        yield f"{CONFIG} says {where}{key} {_shown(config[key])}: it must be a whole number{beginning}"
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    # Other keys than head_dim, such as v_head_dim, also say that a head's size is no quotient.
    sized = any("head_dim" in key or key == "kv_channels" for key, value in config.items() if value is not None)
    if not wrong and not sized and isinstance(width, int) and isinstance(heads, int) and width % heads:
        yield (
            f"{CONFIG} says {where}hidden_size {width} and {where}num_attention_heads {heads}: the one must be a "
            f"multiple of the other, or {where}head_dim be given"
        )
    text = config.get("text_config")
    if isinstance(text, dict):
        yield from number_problems(text, "text_config.")


def _has_own_code(config: Mapping[str, Any]) -> bool:
    return "auto_map" in config


def _is_whole(value: Any, least: int | None) -> bool:
    if value is None or isinstance(value, list):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


@functools.cache
def _architectures() -> str:
    """The source that lists the architectures which transformers knows: importing it would import torch.

    Empty where there is no such list; then nothing can be said.
    """
    spec = importlib.util.find_spec("transformers")
    found = (spec and spec.submodule_search_locations) or ()
    files = [Path(root) / "models" / "auto" / name for root in found for name in _LISTS]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return text if '"llama"' in text else ""
