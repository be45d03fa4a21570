"""Writing a model as one GGUF file: by the package `gguf` for the usual architectures, by a llama.cpp for the others.

Sources: llama.cpp's convert_hf_to_gguf.py (the names of keys, the order of rotary rows, which tensors stay float32),
src/llama-vocab.cpp (how texts are split, by the pre-tokenizer's name), docs/gguf.md of ggml.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.hf_folder import CONFIG, context_length
from modelwright.core.api.records import Message
from modelwright.core.api.wording import either, one_line
from modelwright.core.chat.renderer import Renderer, TemplateRefusedError
from modelwright.core.extras import check_installed, require
from modelwright.core.models.finishing import weights_dtype

# Architectures that the package can write as transformers means them, by their model_type.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# With llama.cpp's names; q8_0 needs no llama-quantize.
QUANTIZATIONS = ("q8_0", "q4_k_m")
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
_FILE_TYPES = {"F32": "ALL_F32", "BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0"}
_BINARIES = ("", "build/bin", "bin")
# How a pre-tokenizer of GPT-2's kind, and one that makes each digit a token before it, are called in llama.cpp.
_PLAIN, _DIGITS = "gpt-2", "smollm"
# The other names, of which several mean the same split; the first ones are those of the best-known models.
_NAMED = ("llama-bpe", "qwen2", "qwen35", "gpt-4o", "tekken")


def write_gguf(
    folder: Path,
    out: Path,
    *,
    name: str,
    quantize: str | None,
    llama_cpp: Path | None,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write a whole model as a GGUF file, which appears whole or not at all.

    Args:
        folder: the model in Hugging Face layout, with its weights in the dtype that is wanted.
        out: the file; an existing one is replaced.
        name: the model's name for the file's metadata.
        quantize: one of `QUANTIZATIONS`; None keeps the weights' dtype.
        llama_cpp: the folder of a llama.cpp, whose converter and quantizer are used where they are there.
        check: called with the complete file before it appears as `out`; what it raises ends the export.

    Raises:
        UsageError: the architecture or tokenizer cannot be written, or a program of llama.cpp is needed and not there.
        ModelwrightError: a program of llama.cpp failed.
        MissingDependencyError: the `gguf` extra is not installed.
    """
    quantizer = _quantizer(llama_cpp, quantize)
    converter = _converter(llama_cpp, needed=quantizer is None)
    direct = None if quantizer else quantize
    with files.writing(out) as placeholder:
        target = Path(placeholder.name)
        first = files.temporary_name(out) if quantizer else target
        try:
            if converter:
                kind = direct or _TYPES[_dtype(folder)].lower()
                _run([sys.executable, converter, folder, "--outfile", first, "--outtype", kind])
            else:
                _write(folder, first, name, direct or _dtype(folder))
            if quantizer:
                _run([quantizer, first, target, quantize])
        finally:
            if first != target:
                first.unlink(missing_ok=True)
        check(target)


def _dtype(folder: Path) -> str:
    dtype = weights_dtype(folder)
    if dtype not in _TYPES:
        raise UsageError(f"weights of type {dtype} cannot be written as GGUF: choose --dtype bfloat16")
    return dtype


def _quantizer(llama_cpp: Path | None, quantize: str | None) -> Path | None:
    if quantize != "q4_k_m":
        return None
    places = [llama_cpp / part / "llama-quantize" for part in _BINARIES] if llama_cpp else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        where = f"there is none in {llama_cpp}, nor in its build/bin" if llama_cpp else "name its folder"
        raise UsageError(
            f"--quantize {quantize} needs llama.cpp's program llama-quantize: {where} (--llama-cpp PATH, built with "
            "cmake), or choose --quantize q8_0"
        )
    return found


def _converter(llama_cpp: Path | None, *, needed: bool) -> Path | None:
    if llama_cpp is None:
        return None
    script = llama_cpp / "convert_hf_to_gguf.py"
    if script.is_file():
        return script
    if needed:
        raise UsageError(
            f"--llama-cpp {llama_cpp}: there is no convert_hf_to_gguf.py; name the folder of llama.cpp's sources (git "
            "clone https://github.com/ggml-org/llama.cpp)"
        )
    return None


def _run(command: list[Any]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        program = next(Path(part).name for part in command if part != sys.executable)
        lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()] or ["no output"]
        hint = "; install the packages of its requirements.txt" if "ModuleNotFoundError" in lines[-1] else ""
        raise ModelwrightError(
            f"llama.cpp's {program} failed (exit code {done.returncode}): {one_line(lines[-1])[:300]}{hint}"
        )


# Without llama.cpp


def _write(folder: Path, out: Path, name: str, kind: str) -> None:
    check_installed("gguf", what="writing GGUF", extra="gguf")
    gguf = require("gguf", extra="gguf")
    arch = _architecture(files.read_json(folder / CONFIG))
    # With the defaults of the architecture, which config.json may leave out.
    config = require("transformers").AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    pre = pre_tokenizer(json.loads((folder / "tokenizer.json").read_bytes()))
    type_ = gguf.GGMLQuantizationType[_TYPES[kind]]
    writer = gguf.GGUFWriter(out, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[type_.name]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_numbers(writer, config, arch)
    _add_tokenizer(writer, folder, config["vocab_size"], pre)
    tensors = list(_tensors(folder, config, arch, type_))
    for target, shape, stored, _ in tensors:
        size = gguf.quants.quant_shape_to_byte_shape(shape, stored) if stored.name == "Q8_0" else shape
        width = {"Q8_0": 1, "F32": 4}.get(stored.name, 2)
        writer.add_tensor_info(target, shape, None, width * math.prod(size), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, stored, read in tensors:
        writer.write_tensor_data(_bytes(read(), stored))
    writer.close()


def _architecture(config: Mapping[str, Any]) -> str:
    """The name of the architecture in GGUF.

    Raises:
        UsageError: the package cannot write it as transformers means it.
    """
    kind = config["model_type"]
    remedy = "name a llama.cpp whose converter knows it (--llama-cpp PATH)"
    if kind not in ARCHITECTURES:
        raise UsageError(
            f"a model of the architecture {kind!r} cannot be written as GGUF without llama.cpp (only "
            f"{either(tuple(ARCHITECTURES))} can): {remedy}"
        )
    rope_kind = _rope(config)["rope_type"]
    if rope_kind not in ("default", "llama3"):
        raise UsageError(f"a model with scaled rotary positions ({rope_kind!r}) needs llama.cpp's converter: {remedy}")
    sliding = config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window")
    if sliding and sliding < (context_length(config) or 0):
        raise UsageError(f"a model with a sliding window ({sliding} tokens) needs llama.cpp's converter: {remedy}")
    return ARCHITECTURES[kind]


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions of a config, which transformers 4 wrote in two places."""
    older = config.get("rope_scaling") or {}
    plain = {"rope_type": older.get("type", "default"), "rope_theta": config.get("rope_theta", 10000.0)}
    return {**plain, **older, **(config.get("rope_parameters") or {})}


def _add_numbers(writer: Any, config: Mapping[str, Any], arch: str) -> None:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config["vocab_size"])
    if arch == "llama":
        writer.add_rope_dimension_count(head)


def pre_tokenizer(tree: Mapping[str, Any]) -> str:
    """The name in llama.cpp for how a byte-level tokenizer splits texts.

    Args:
        tree: the content of tokenizer.json.

    Raises:
        UsageError: it is of another kind, or llama.cpp has no name that is known here.
    """
    model, steps = tree["model"], tree.get("pre_tokenizer") or {}
    remedy = "name a llama.cpp whose converter may know it (--llama-cpp PATH)"
    if model.get("type") != "BPE" or steps.get("type") not in ("ByteLevel", "Sequence") or model.get("byte_fallback"):
        raise UsageError(
            f"a tokenizer of the kind {model.get('type')!r} without bytes cannot be written as GGUF without llama.cpp "
            f"(only byte-level BPE can): {remedy}"
        )
    *splits, last = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    name = None
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        patterns = [split.get("pattern", {}).get("Regex") for split in splits if split.get("type") == "Split"]
        digits = splits == [{"type": "Digits", "individual_digits": True}] or patterns == [r"\p{N}"]
        if last.get("use_regex", True):
            name = _PLAIN if not splits else _DIGITS if digits and len(splits) == 1 else None
        elif len(splits) == len(patterns) == 1:
            known = require("transformers.integrations.gguf.gguf_tokenizer_mapping").GGUF_PRE_TOKENIZER_SPLITS
            name = next((each for each in _NAMED if known.get(each) == patterns[0]), None)
    # llama.cpp looks whole words up first for this name alone.
    if name is None or bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise UsageError(f"llama.cpp has no known name for how this tokenizer splits texts: {remedy}")
    return name


def _add_tokenizer(writer: Any, folder: Path, rows: int, pre: str) -> None:
    gguf, tokenizers = require("gguf", extra="gguf"), require("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [gguf.TokenType.UNUSED] * rows
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number < rows:
            tokens[number], types[number] = token, gguf.TokenType.NORMAL
            if number in added:
                special = added[number].special
                types[number] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    renderer = Renderer.from_folder(folder)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows)
    special.add_special_token = {"bos": begins(renderer)}
    # The tokens that end a turn, besides the end of sequence, which may be another one.
    names, ids = ("eot", "eom"), special.special_token_ids
    others = sorted(renderer.stop_token_ids - {ids.get("eos")})
    if len(others) > len(names):
        raise UsageError(
            f"{len(others) + 1} tokens end a turn of this model, and a GGUF file names three: remove some from "
            "eos_token_id in generation_config.json"
        )
    special.special_token_ids = {**ids, **dict(zip(names, others, strict=False))}
    special.add_to_gguf(writer, quiet=True)


def begins(renderer: Renderer) -> bool:
    """Whether a runtime has to put the begin-of-sequence token before every prompt: texts and conversations alike."""
    bos = renderer.special_ids.get("bos_token")
    prompts = [renderer.encode("Question")]
    with contextlib.suppress(TemplateRefusedError, UsageError):  # without a template there are only texts
        prompts.append(renderer.prompt([Message(role="user", content="Question")]))
    return bos is not None and all(ids[:1] == (bos,) for ids in prompts)


def _tensors(folder: Path, config: Mapping[str, Any], arch: str, type_: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Each tensor's name, shape, type in the file, and a function that reads it."""
    gguf, safetensors = require("gguf", extra="gguf"), require("safetensors")
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    rows = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads} if arch == "llama" else {}
    if (rope := _rope(config))["rope_type"] == "llama3":
        factors = _rope_factors(folder, rope["rope_theta"])
        yield "rope_freqs.weight", tuple(factors.shape), gguf.GGMLQuantizationType.F32, lambda: factors
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        for name, shape in sorted(shapes.items()):
            if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
                continue
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise UsageError(f"GGUF has no name for the tensor {name} of this architecture: use --llama-cpp PATH")
            stored = type_ if len(shape) > 1 else gguf.GGMLQuantizationType.F32
            if stored.name == "Q8_0" and shape[-1] % 32:  # a block has 32 numbers
                stored = gguf.GGMLQuantizationType.F16
            part = next((count for key, count in rows.items() if f".{key}." in name), None)
            yield target, shape, stored, lambda file=file, name=name, part=part: _read(file, name, part)


def _read(file: Path, name: str, heads: int | None) -> Any:
    """A tensor; with `heads`, its rows in the order in which llama.cpp rotates them: pairs, not halves."""
    with require("safetensors").safe_open(file, framework="pt") as opened:
        tensor = opened.get_tensor(name)
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape).contiguous()


def _rope_factors(folder: Path, base: float) -> Any:
    """By how much llama 3's rotary frequencies are lower than plain ones: float32 `[head_dim / 2]`."""
    torch = require("torch")
    config = require("transformers").AutoConfig.from_pretrained(folder, local_files_only=True)
    scaled, _ = require("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled))
    return 1.0 / (base**exponents) / scaled


def _bytes(tensor: Any, stored: Any) -> Any:
    torch = require("torch")
    if stored.name == "Q8_0":
        return require("gguf", extra="gguf").quants.quantize(tensor.float().numpy(), stored)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[stored.name]
    # numpy has no bfloat16.
    return tensor.to(dtype).contiguous().view(torch.uint8).numpy()
