"""A base model's folder, looked at before any work begins: without torch, and without reading the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, SeveralErrors, UsageError
from modelwright.core.models.base_config import CONFIG, WrongError, number_problems, read_config, read_object

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
# Formats that run code when they are read, or that this program does not read at all.
OTHER_WEIGHTS = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
# What safetensors itself takes for the longest header, in bytes.
_LONGEST_HEADER = 100_000_000
# The name that most architectures have for the tensor [vocab_size or a little more, hidden_size].
_EMBEDDING = "model.embed_tokens.weight"


def check_base_folder(folder: Path, source: str) -> None:
    """Check that a folder holds a model in Hugging Face layout: config, tokenizer and whole safetensors that agree.

    Args:
        folder: the folder.
        source: what `[model] base` says, for messages.

    Raises:
        UsageError: it does not; with a line for each thing that is wrong.
    """
    try:
        there, is_folder = folder.exists(), folder.is_dir()
    except OSError as error:
        raise UsageError(f"[model] base {source}: cannot be read: {error.strerror}") from error
    if not there:
        raise UsageError(f"[model] base {source}: there is no such folder")
    if not is_folder:
        raise UsageError(f"[model] base {source}: this is a file: name the folder with its config.json")
    problems = list(folder_problems(folder, growing=True))
    errors: list[ModelwrightError] = [UsageError(f"[model] base {source}: {problem}") for problem in problems]
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralErrors(errors)


def folder_problems(folder: Path, *, growing: bool = False) -> Iterator[str]:
    """What is wrong with a folder as a model in Hugging Face layout, in lines without the folder's name.

    Args:
        folder: the folder.
        growing: the embeddings will be made to fit the tokenizer, so that it may have more tokens; those of its own
            vocabulary, which the model must have learnt, excepted.
    """
    found: dict[str, Any] = {}
    for name, look in (("config", read_config), ("tokenizer", _tokenizer), ("weights", _weights)):
        try:
            found[name] = look(folder)
        except WrongError as error:
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
    """How many numbers the weights of a folder are that `check_base_folder` passes.

    Raises:
        WrongError: they cannot be read.
    """
    return sum(math.prod(shape) for shape in _weights(folder).values())


# Tokenizers

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@frozen
class _Tokens:
    """The texts of the tokens that a text or the template can give, by their ids.

    Attributes:
        learnt: of the vocabulary itself.
        added: put beside it later.
    """

    learnt: Mapping[int, str]
    added: Mapping[int, str]


def token_count(folder: Path) -> int:
    """How many tokens the tokenizer of a folder can give: the highest id that can come up, and one.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        tokens = _tokenizer(folder)
    except WrongError as error:
        raise UsageError(f"{folder}: {error}") from error
    return max((*tokens.learnt, *tokens.added), default=-1) + 1


def _tokenizer(folder: Path) -> _Tokens:
    if not (folder / "tokenizer.json").is_file():
        raise WrongError(
            "there is no tokenizer.json: save the fast tokenizer there, with "
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
        raise WrongError("tokenizer.json is no tokenizer: it has no model.vocab")
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
    """The texts in which a special token can be named."""
    files = (folder / name for name in _SETTINGS)
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]
    try:
        config = json.loads(texts[0]) if texts else {}
    except ValueError:
        return "\n".join(texts)
    if isinstance(config, dict):
        # It lists every added token; that alone gives none of them a use.
        texts[0:1] = [str(value) for key, value in config.items() if key != "added_tokens_decoder"]
    return "\n".join(texts)


def _used(token: Mapping[str, Any], settings: str) -> bool:
    """Whether a token can come up: a special one only where it is named, as Gemma's text models have one for images."""
    return not token.get("special") or str(token.get("content")) in settings


def _too_large(tokens: _Tokens, config: Mapping[str, Any], *, growing: bool) -> Iterator[str]:
    text = config.get("text_config")
    rows = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    every = {**tokens.learnt, **tokens.added}
    largest = max(tokens.learnt if growing else every, default=-1)
    if isinstance(rows, int) and largest >= rows:
        largest = max(every)
        yield (
            f"its tokenizer has {largest + 1} tokens and its embedding {rows} (vocab_size in config.json): the "
            f"tokenizer is another model's, or {every[largest]!r} was added without resizing the embedding"
        )


# Weights


def _weights(folder: Path) -> dict[str, list[int]]:
    """The shapes of the tensors, by their names."""
    shapes: dict[str, list[int]] = {}
    for name in _weight_files(folder):
        if not (folder / name).is_file():
            raise WrongError(f"{name} is missing, which {INDEX} names: copy the model again")
        shapes |= _whole(folder / name)
    return shapes


def _other_shape(shapes: Mapping[str, list[int]], config: Mapping[str, Any]) -> Iterator[str]:
    """What the weights say of the model's size against its config, where both are of the usual kind."""
    shape = shapes.get(_EMBEDDING, ())
    if len(shape) != 2 or "quantization_config" in config or "auto_map" in config:
        return
    sizes = {key: config.get(key) for key in ("vocab_size", "hidden_size")}
    for (key, size), there, what in zip(sizes.items(), shape, ("rows", "columns"), strict=True):
        # Some architectures have a few more rows than tokens.
        if isinstance(size, int) and (size > there if key == "vocab_size" else size != there):
            yield (
                f"{CONFIG} says {key} {size}, and in the weights {_EMBEDDING} has {there} {what}: they are of two "
                "models, or one of them was changed; copy the model again"
            )


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        names = read_object(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise WrongError(f"{INDEX} names no files: expected a table weight_map")
        return sorted(set(names.values()))
    others = sorted({path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)})
    if others:
        raise WrongError(
            f"its weights are in {', '.join(others)}, and only safetensors are read (a pickle can run any code): "
            "save the model with save_pretrained() of a recent transformers"
        )
    if (folder / "adapter_config.json").is_file():
        raise WrongError("this is an adapter: merge it into its base (modelwright models merge ADDRESS), and take that")
    raise WrongError(f"there are no weights: expected {WEIGHTS} (a model from nothing is [model.scratch])")


def _whole(path: Path) -> dict[str, list[int]]:
    """The shapes in a safetensors file, which must be as long as its header says.

    The format: eight bytes with the header's length, little-endian; the header, JSON; then the tensors' bytes, which
    `data_offsets` count from the header's end (its documentation, section Format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise WrongError(f"{path.name} is no safetensors file, or is cut short ({size} bytes): copy it again")
        try:
            header = json.loads(file.read(length))
            tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
            shapes = {name: list(tensor["shape"]) for name, tensor in tensors.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise WrongError(f"{path.name} is no safetensors file: its header cannot be read; copy it again") from None
    if size < whole:
        raise WrongError(f"{path.name} is cut short: it has {size} of {whole} bytes; copy it again")
    return shapes
