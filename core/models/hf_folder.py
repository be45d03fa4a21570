"""A model's folder in Hugging Face layout, checked before any work begins: without torch, and without reading weights.

What can be wrong with one is here; the names of its files and the numbers of its config are in `core.api.hf_folder`,
which plugins import as well.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from modelwright.core.api.errors import UsageError, raise_errors
from modelwright.core.api.files import read_json
from modelwright.core.api.hf_folder import (
    ADAPTER_CONFIG,
    CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    context_length,
    other_weights,
    text_value,
    vocabulary_size,
)

# The most common keys with their lowest values; None means no limit. In the file a list has a value for each layer, and
# null leaves it to the model.
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
# The files in which versions of transformers 5 list their architectures.
_LISTS = ("auto_mappings.py", "configuration_auto.py")
# The longest header that the safetensors library accepts, in bytes.
_LONGEST_HEADER = 100_000_000
# The names that most architectures have for the tensor [vocab_size or a little more, hidden_size]; the longer ones are
# those of composite models (Gemma 3, LLaVA), as they are written by transformers 4 and 5.
_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
)


class BadFolderError(Exception):
    """A file in the folder is missing or wrong; the message says what to do."""


def check_base_folder(folder: Path, source: str) -> None:
    """Check that a folder holds a model in Hugging Face layout: config, tokenizer and weights, complete and fitting.

    Args:
        folder: the folder.
        source: what `[model] base` says, for messages.

    Raises:
        UsageError: something is wrong; one line for each problem.
    """
    try:
        there, is_folder = folder.exists(), folder.is_dir()
    except OSError as error:
        raise UsageError(f"[model] base {source}: it cannot be read: {error.strerror}") from error
    if not there:
        raise UsageError(f"[model] base {source}: the folder does not exist")
    if not is_folder:
        raise UsageError(f"[model] base {source}: this is a file; give the folder that contains config.json")
    problems = list(folder_problems(folder, growing=True))
    raise_errors([UsageError(f"[model] base {source}: {problem}") for problem in problems])


def folder_problems(folder: Path, *, growing: bool = False) -> Iterator[str]:
    """The problems of a folder as a model in Hugging Face layout, a line for each, without the folder's name.

    Args:
        folder: the folder.
        growing: training will grow the embeddings to fit the tokenizer, so added tokens may lie beyond them. Tokens of
            the vocabulary itself, which the model was pretrained with, may not.
    """
    found: dict[str, Any] = {}
    for name, look in (("config", read_config), ("tokenizer", _tokenizer), ("weights", _weights)):
        try:
            found[name] = look(folder)
        except BadFolderError as error:
            yield str(error)
        except OSError as error:
            yield f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    if "config" in found:
        numbers = list(number_problems(found["config"]))
        yield from numbers
        if not numbers and "weights" in found:
            yield from _other_shape(found["weights"], found["config"])
        if not numbers and "tokenizer" in found:
            yield from _too_large(found["tokenizer"], found["config"], growing=growing)


def parameter_count(folder: Path) -> int:
    """The number of parameters in a folder that passes `check_base_folder`.

    Raises:
        BadFolderError: the weights cannot be read.
    """
    return sum(math.prod(shape) for shape in _weights(folder).values())


def folder_context(folder: Path) -> int | None:
    """The context length of the model in a folder, as `context_length` gives it."""
    config = read_json(folder / CONFIG)
    return context_length(config) if isinstance(config, dict) else None


# The config


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object as strictly as the libraries do: UTF-8 without a byte order mark.

    Raises:
        BadFolderError: the file holds something else.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        raise BadFolderError(f"{path.name} begins with a byte order mark: save it as UTF-8 without one")
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise BadFolderError(
            f"{path.name} is not UTF-8 (byte {error.start + 1} is 0x{byte:02x}): save it as UTF-8"
        ) from None
    except RecursionError:
        raise BadFolderError(f"{path.name}: the JSON is nested too deeply; copy the file again") from None
    except ValueError as error:
        raise BadFolderError(f"{path.name} is not valid JSON: {error}; fix it, or copy the file again") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise BadFolderError(f"{path.name} must contain a JSON object, not a {kind}: copy the file again")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's `config.json`.

    Raises:
        BadFolderError: it is missing, names no architecture, or one that transformers does not know.
        OSError: it cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise BadFolderError(f"there is no {CONFIG}: expected a model folder in Hugging Face layout")
    config = read_object(folder / CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise BadFolderError(f'{CONFIG} has no "model_type": expected the name of an architecture, such as "llama"')
    names = _architectures()
    if not _has_own_code(config) and names and f'"{kind}"' not in names:
        version = importlib.metadata.version("transformers")
        raise BadFolderError(
            f"{CONFIG}: unknown model_type {_shown(kind)} (transformers {version} has none of that name): correct it, "
            "or upgrade transformers (pip install -U transformers)"
        )
    return config


def number_problems(config: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """The problems of a config's numbers, those of its `text_config` included.

    Args:
        config: the content of config.json. Nothing is checked if the model brings its own code.
        where: the prefix of a key in messages.
    """
    if _has_own_code(config):
        return
    wrong = [key for key in _WHOLE if not _is_whole(config.get(key), _WHOLE[key])]
    for key in wrong:
        least = _WHOLE[key]
        bound = "" if least is None else f" of at least {least}"
        yield f"{CONFIG}: {where}{key} is {_shown(config[key])}, expected an integer{bound}"
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    # Keys such as v_head_dim also give a head a size of its own.
    sized = any("head_dim" in key or key == "kv_channels" for key, value in config.items() if value is not None)
    if not wrong and not sized and isinstance(width, int) and isinstance(heads, int) and width % heads:
        yield (
            f"{CONFIG}: {where}hidden_size {width} is not a multiple of {where}num_attention_heads {heads}: correct "
            f"one of them, or set {where}head_dim"
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
    """The source code in which transformers lists its architectures: importing it would import torch.

    Empty if there is no such list; then any architecture passes.
    """
    spec = importlib.util.find_spec("transformers")
    found = (spec and spec.submodule_search_locations) or ()
    files = [Path(root) / "models" / "auto" / name for root in found for name in _LISTS]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return text if '"llama"' in text else ""


# Tokenizers

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@frozen
class _Tokens:
    """The tokens that a text or the chat template can produce, by id.

    Attributes:
        vocabulary: the tokens of the tokenizer's model.
        added: the added tokens.
    """

    vocabulary: Mapping[int, str]
    added: Mapping[int, str]


def token_count(folder: Path) -> int:
    """The number of tokens of a folder's tokenizer: the highest id that it can produce, plus 1.

    Raises:
        UsageError: the tokenizer cannot be read.
    """
    try:
        tokens = _tokenizer(folder)
    except BadFolderError as error:
        raise UsageError(f"{folder}: {error}") from error
    return max((*tokens.vocabulary, *tokens.added), default=-1) + 1


def _tokenizer(folder: Path) -> _Tokens:
    if not (folder / "tokenizer.json").is_file():
        raise BadFolderError(
            "there is no tokenizer.json: save a fast tokenizer with "
            "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    tree = read_object(folder / "tokenizer.json")
    model = tree.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: [text, score] in the order of ids
        tokens = {number: str(entry[0]) for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    elif isinstance(vocabulary, dict):
        tokens = {number: text for text, number in vocabulary.items() if isinstance(number, int)}
    else:
        raise BadFolderError("tokenizer.json is not a tokenizer: it has no model.vocab")
    if (folder / _SETTINGS[0]).exists():
        read_object(folder / _SETTINGS[0])
    settings = _settings(folder)
    listed = tree.get("added_tokens")
    added = {
        token["id"]: str(token.get("content"))
        for token in (listed if isinstance(listed, list) else ())
        if isinstance(token, dict) and isinstance(token.get("id"), int) and _used(token, settings)
    }
    return _Tokens(tokens, added)


def _settings(folder: Path) -> str:
    """The texts that can name a special token."""
    files = (folder / name for name in _SETTINGS)
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    try:
        config = json.loads(texts[0]) if texts else {}
    except ValueError:
        return "\n".join(texts)
    if isinstance(config, dict):
        # This key lists every added token, whether it is used or not.
        texts[0:1] = [str(value) for key, value in config.items() if key != "added_tokens_decoder"]
    return "\n".join(texts)


def _used(token: Mapping[str, Any], settings: str) -> bool:
    """Whether a token can be produced: a special one only if it is named (Gemma's text models have one for images)."""
    return not token.get("special") or str(token.get("content")) in settings


def _too_large(tokens: _Tokens, config: Mapping[str, Any], *, growing: bool) -> Iterator[str]:
    rows = vocabulary_size(config)
    every = {**tokens.vocabulary, **tokens.added}
    largest = max(tokens.vocabulary if growing else every, default=-1)
    if rows is not None and largest >= rows:
        largest = max(every)
        yield (
            f"the tokenizer has {largest + 1} tokens, but the embedding has {rows} rows (vocab_size in {CONFIG}): the "
            f"tokenizer belongs to another model, or {every[largest]!r} was added without resizing the embedding"
        )


# Weights


def _weights(folder: Path) -> dict[str, list[int]]:
    """The shape of each tensor, by name."""
    shapes: dict[str, list[int]] = {}
    for name in _weight_files(folder):
        if not (folder / name).is_file():
            raise BadFolderError(f"{name} is missing, but {WEIGHTS_INDEX} lists it: copy the model again")
        shapes |= _whole(folder / name)
    return shapes


def _other_shape(shapes: Mapping[str, list[int]], config: Mapping[str, Any]) -> Iterator[str]:
    """Where the shape of the embedding contradicts the config, if both are of the usual kind."""
    name = next((name for name in _EMBEDDINGS if name in shapes), "")
    shape = shapes.get(name, ())
    if len(shape) != 2 or "quantization_config" in config or "auto_map" in config:
        return
    sizes = {key: text_value(config, key) for key in ("vocab_size", "hidden_size")}
    for (key, size), there, what in zip(sizes.items(), shape, ("rows", "columns"), strict=True):
        # Some architectures have a few more rows than tokens.
        if isinstance(size, int) and (size > there if key == "vocab_size" else size != there):
            yield (
                f"{CONFIG} says {key} {size}, but in the weights {name} has {there} {what}: they belong to different "
                "models, or one of them was changed; copy the model again"
            )


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        names = read_object(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise BadFolderError(f"{WEIGHTS_INDEX} lists no files: expected a table weight_map")
        return sorted(set(names.values()))
    if problem := other_weights(folder):
        raise BadFolderError(problem)
    if (folder / ADAPTER_CONFIG).is_file():
        raise BadFolderError(
            "this is an adapter, not a whole model: merge it into its base (modelwright models merge ADDRESS), and use "
            "the merged model"
        )
    raise BadFolderError(f"there are no weights: expected {WEIGHTS} (to train a model from scratch: [model.scratch])")


def _whole(path: Path) -> dict[str, list[int]]:
    """The shapes in a safetensors file, after checking that the file is as long as its header says.

    The format: eight bytes with the header's length, little-endian; the header, JSON; then the tensors' bytes, which
    `data_offsets` count from the header's end (its documentation, section Format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            reason = f"{path.name} is not a safetensors file, or is cut short ({size} bytes): copy the file again"
            raise BadFolderError(reason)
        try:
            header = json.loads(file.read(length))
            tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
            shapes = {name: list(tensor["shape"]) for name, tensor in tensors.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise BadFolderError(
                f"{path.name} is not a safetensors file: its header cannot be read; copy the file again"
            ) from None
    if size < whole:
        raise BadFolderError(f"{path.name} is cut short: it has {size} of {whole} bytes; copy the file again")
    return shapes
