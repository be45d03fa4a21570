"""A base in one GGUF file: transformers dequantizes it into a folder in Hugging Face layout, once for each content.

    MODEL.gguf  ──►  $MODELWRIGHT_HOME/cache/gguf/SHA256-VERSION/   config, tokenizer, safetensors
                                                modelwright.json    the GGUF's sha256 and the type of its weights

It is done by a process of its own (`python -m modelwright.core.models.gguf_base FILE FOLDER`), because the runner never
imports torch, and because a reader in Python is slow and takes the whole model's memory.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import frozen

from modelwright.core import home
from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.wording import listed, one_line
from modelwright.core.chat.renderer import MODEL_RECORD
from modelwright.core.extras import check_installed

# Increased when the same GGUF gives another folder than before.
VERSION = 1
_MAGIC = b"GGUF"
# Values between full and quantized ones keep their type. Models are published in bfloat16, so values that were
# dequantized are rounded to it, which costs less than the quantization did.
_FULL = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_QUANTIZED = "bfloat16"
# How pre-tokenizers split a text, by their names in llama.cpp (src/llama-vocab.cpp), where transformers does not know
# the name and takes GPT-2's split instead. With these ones each digit is a token.
_GPT2_SPLIT = {"default", "gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling"}
_DIGITS_SPLIT = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"}


@frozen(kw_only=True)
class Dequantized:
    """A GGUF as a folder.

    Attributes:
        folder: in Hugging Face layout; part of the cache, so it must not be changed.
        digest: the sha256 of the GGUF.
        weights: the type of most of its weights, such as "Q4_K".
        dtype: that of the folder's weights, such as "bfloat16".
        unknown_split: the name of its pre-tokenizer if transformers does not know it: the tokens may differ.
    """

    folder: Path
    digest: str
    weights: str
    dtype: str
    unknown_split: str | None = None

    def __str__(self) -> str:
        text = f"its {self.weights} weights are used as {self.dtype}, dequantized by transformers into {self.folder}"
        if self.unknown_split is None:
            return text
        return f"{text}; transformers does not know its pre-tokenizer {self.unknown_split!r}: tokens may differ"


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf"


def dequantize(path: Path, source: str) -> Dequantized:
    """The folder of a GGUF's model, which is made if it is not in the cache.

    Args:
        path: the file.
        source: what the user calls it, as the beginning of messages.

    Raises:
        UsageError: it is not a GGUF, or not one that transformers can read.
        MissingDependencyError: the `gguf` extra is not installed.
    """
    folder = _place(gguf_digest(path, source))
    if not folder.is_dir():
        _check_packages()
        _make(path, source, folder)
    os.utime(folder)  # `cache prune` removes what was not used for long
    record = dequantized_from(folder)
    assert record is not None
    return Dequantized(folder=folder, **record)


def cached(path: Path, source: str) -> Path | None:
    """The folder of a GGUF's model if it is in the cache, and None if it is yet to be made.

    Raises:
        UsageError: it is missing, or not a GGUF file.
        MissingDependencyError: the `gguf` extra is not installed.
    """
    folder = _place(gguf_digest(path, source))
    if folder.is_dir():
        return folder
    _check_packages()
    return None


def _check_packages() -> None:
    check_installed("gguf", "torch", "transformers", what="a base in a GGUF file", extra="gguf")


def _place(digest: str) -> Path:
    return home.home() / "cache" / "gguf" / f"{digest}-{VERSION}"


def gguf_digest(path: Path, source: str) -> str:
    """The sha256 of a GGUF file: the digest of the base that it is.

    Raises:
        UsageError: it is missing, or not a GGUF file.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise UsageError(f"{source}: the file does not exist") from None
    except OSError as error:
        raise UsageError(f"{source}: it cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise UsageError(f"{source}: this is not a GGUF file: it begins with {magic!r}; copy the file again")
    with files.failing_as(f"{source} cannot be read"):
        status = path.stat()
        return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - another size or time is another content
    """The sha256 of a file, which is read once in a process: it may have 40 GB."""
    return files.sha256_file(path)


def dequantized_from(folder: Path) -> dict[str, Any] | None:
    """What a model's folder records of the GGUF that the model comes from; None if there was none."""
    record: dict[str, Any] | None = (files.read_json(folder / MODEL_RECORD) or {}).get("gguf")
    return record


def _make(path: Path, source: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The first lock keeps `cache prune` away, the second one others who need the same folder.
    with (folder.parent.parent / ".lock").open("a+b") as shared, (folder.parent / ".lock").open("a+b") as alone:
        fcntl.flock(shared, fcntl.LOCK_SH)
        fcntl.flock(alone, fcntl.LOCK_EX)
        if folder.is_dir():
            return
        files.remove_temporaries(folder.parent)
        with files.writing_folder(folder) as temporary:
            command = [sys.executable, "-m", "modelwright.core.models.gguf_base", str(path), str(temporary)]
            # Standard output has the result; progress bars go to the terminal, if there is one.
            errors = None if sys.stderr.isatty() else subprocess.PIPE
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
            result = json.loads(done.stdout) if done.stdout else {}
            if "error" in result:
                raise UsageError(f"{source}: {result['error']}")
            if done.returncode:
                last = (done.stderr or "").strip().splitlines()[-1:]
                raise ModelwrightError(
                    f"{source} cannot be dequantized: {last[0] if last else f'exit code {done.returncode}'}; it needs "
                    "memory for all of its weights in float32"
                )
            record = {"digest": folder.name.partition("-")[0], **result}
            files.write_json(temporary / MODEL_RECORD, {"gguf": record})


# The process


class _UnusableError(Exception):
    """Why a GGUF cannot be used, and what to do."""


def _convert(path: Path, folder: Path) -> dict[str, Any]:
    """Write the folder, and return the fields of `Dequantized` that the file decides."""
    import gguf
    import torch
    import transformers

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise _UnusableError(f"the file is damaged or cut short ({one_line(error):.200}): copy it again") from error
    values = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("tokenizer.ggml.t")}
    if values.get("split.count", 1) > 1:
        raise _UnusableError(
            f"it is one of {values['split.count']} parts of a model: join them with llama.cpp's llama-gguf-split "
            "--merge, and use the whole file"
        )
    if "tokenizer.ggml.model" not in values:
        raise _UnusableError("it has no tokenizer: use the model's folder in Hugging Face layout")
    weights, dtype = _types(reader)
    kind, version = values.get("general.architecture"), transformers.__version__
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except MemoryError:
        raise
    except Exception as error:
        reason = one_line(error).rstrip(".")[:200]
        raise _UnusableError(
            f"transformers {version} cannot read a GGUF of architecture {kind!r} ({reason}): use the model's folder in "
            "Hugging Face layout, or upgrade transformers"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise _UnusableError(
            f"its tensors do not make a whole model of architecture {kind!r}: missing {listed(missing, 3)}: use the "
            "model's folder in Hugging Face layout"
        )
    # transformers refuses to save what it takes for quantized still.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    split = str(values.get("tokenizer.ggml.pre", "default")) if values["tokenizer.ggml.model"] == "gpt2" else None
    unknown = split if split and not _split_as(tokenizer, split) else None
    tokenizer.save_pretrained(folder)
    return {"weights": weights, "dtype": dtype, "unknown_split": unknown}


def _types(reader: Any) -> tuple[str, str]:
    """The type of most of the weights in a GGUF, and the dtype for them."""
    sizes = Counter[str]()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    (weights, _), *_ = sizes.most_common(1)
    if set(sizes) <= set(_FULL):
        return weights, _FULL[weights]
    return weights, _QUANTIZED


def _split_as(tokenizer: Any, name: str) -> bool:
    """Let a byte-level tokenizer split texts as llama.cpp does by that name; false if nobody here knows it."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if name in _DIGITS_SPLIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        return True
    return name in _GPT2_SPLIT or name in GGUF_PRE_TOKENIZER_SPLITS


def main() -> None:
    """Dequantize the file that the first argument names into the folder of the second one."""
    file, folder = map(Path, sys.argv[1:])
    # Progress and warnings of the libraries go to standard error; the result alone to standard output.
    with os.fdopen(os.dup(1), "w") as result:
        os.dup2(2, 1)
        try:
            json.dump(_convert(file, folder), result)
        except _UnusableError as error:
            json.dump({"error": str(error)}, result)


if __name__ == "__main__":
    main()
