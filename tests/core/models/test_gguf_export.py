"""A GGUF says what the model says: read back by transformers, which has code of its own for it."""

from __future__ import annotations

import json
import sys

import gguf
import pytest
import torch
from gguf_models import SPECIAL, byte_tokenizer, folder_of
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.models.gguf_export import pre_tokenizer, write_gguf

IDS = torch.arange(24).view(2, 12) * 7


def written(folder, out, quantize=None, llama_cpp=None):
    write_gguf(folder, out, name="math@1", quantize=quantize, llama_cpp=llama_cpp)
    return out


def logits(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(IDS).logits


def fields(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
        ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128, "hidden_size": 64}),
    ],
    ids=["llama", "llama-bias-tied", "mistral", "qwen2", "qwen3"],
)
def test_the_logits_are_those_of_the_model(tmp_path, kind, changes):
    """Exactly: nothing is rounded in float32, and rotary rows are permuted there and back."""
    folder = folder_of(tmp_path / "model", kind, **changes)
    written(folder, tmp_path / "model.gguf")
    assert torch.equal(logits(tmp_path, gguf_file="model.gguf"), logits(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_keeps_the_dtype_of_the_weights(tmp_path, dtype):
    """Norms are float32, as llama.cpp wants them."""
    folder = folder_of(tmp_path / "model", dtype=dtype)
    written(folder, tmp_path / "model.gguf")
    assert torch.equal(logits(tmp_path, gguf_file="model.gguf"), logits(folder))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    short = "BF16" if dtype == torch.bfloat16 else "F16"
    assert (kinds["token_embd.weight"], kinds["output_norm.weight"]) == (short, "F32")


def test_q8_0_is_as_close_as_eight_bits_are(tmp_path):
    """32 numbers share a scale, so each is off by at most 1/254 of the largest."""
    folder = folder_of(tmp_path / "model", hidden_size=64, intermediate_size=64, initializer_range=0.1)
    written(folder, tmp_path / "model.gguf", "q8_0")
    exact = logits(folder)
    assert (logits(tmp_path, gguf_file="model.gguf") - exact).abs().max() < 0.03 * exact.abs().max()
    assert (tmp_path / "model.gguf").stat().st_size < (folder / "model.safetensors").stat().st_size / 2
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds == {"Q8_0", "F32"}


def test_tokens_template_and_stops_are_in_it(tmp_path):
    """Rows beyond the tokenizer are unused; `<|im_end|>` ends turns beside the end of sequence."""
    folder = folder_of(tmp_path / "model", tokenizer=byte_tokenizer(merges=[("Ġ", "t"), ("1", "2")]))
    found = fields(written(folder, tmp_path / "model.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    count = len(tokenizer)
    assert found["tokenizer.ggml.tokens"][:count] == [tokenizer.convert_ids_to_tokens(i) for i in range(count)]
    assert found["tokenizer.ggml.tokens"][count:] == [f"[PAD{number}]" for number in range(count, count + 5)]
    kinds = gguf.TokenType
    assert found["tokenizer.ggml.token_type"] == [kinds.NORMAL] * 258 + [kinds.CONTROL] * 3 + [kinds.UNUSED] * 5
    assert found["tokenizer.ggml.merges"] == ["Ġ t", "1 2"]
    ends = {name: found[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot")}
    assert ends == {
        "eos": tokenizer.convert_tokens_to_ids(SPECIAL[0]),
        "eot": tokenizer.convert_tokens_to_ids(SPECIAL[2]),
    }
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["general.name"] == "math@1"


@pytest.mark.parametrize("bos", ["in the template", "in texts only", "in both"])
def test_a_runtime_adds_the_begin_token_only_if_every_prompt_has_it(tmp_path, bos):
    """llama.cpp adds it to texts and conversations alike, and drops a doubled one."""
    folder = folder_of(tmp_path / "model", template="{{ bos_token }}Q" if "texts" not in bos else "Q")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": SPECIAL[1]}))
    if "template" not in bos:
        tree = json.loads((folder / "tokenizer.json").read_text())
        special = {"id": SPECIAL[1], "ids": [257], "tokens": [SPECIAL[1]]}
        tree["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": SPECIAL[1], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {SPECIAL[1]: special},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tree))
    found = fields(written(folder, tmp_path / "model.gguf"))
    assert found["tokenizer.ggml.add_bos_token"] is (bos == "in both")


def test_scaled_positions_of_llama_3_are_a_tensor(tmp_path):
    """Factors of the frequencies, as llama.cpp applies them: 1 for fast ones, 8 for slow ones."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    folder = folder_of(tmp_path / "model", rope_parameters=rope, head_dim=64)
    reader = gguf.GGUFReader(written(folder, tmp_path / "model.gguf"))
    (factors,) = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    assert factors.shape == (32,)
    assert factors[0] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(8.0)
    assert all(1 - 1e-4 <= factor <= 8 + 1e-4 for factor in factors)


def split_by(name):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@pytest.mark.parametrize(
    ("split", "options", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), {}, "gpt-2"),
        (byte_tokenizer().pre_tokenizer, {}, "smollm"),
        (split_by("qwen2"), {}, "qwen2"),
        (split_by("llama-bpe"), {"ignore_merges": True}, "llama-bpe"),
        (split_by("tekken"), {}, "tekken"),
    ],
    ids=["gpt-2", "digits", "qwen2", "llama3", "tekken"],
)
def test_how_texts_are_split_has_a_name_in_llama_cpp(split, options, name):
    """A wrong name would split numbers and signs in another way, without a word."""
    assert pre_tokenizer(json.loads(byte_tokenizer(split, **options).to_str())) == name


@pytest.mark.parametrize("what", ["architecture", "words", "split", "rope", "window"])
def test_what_cannot_be_written_is_refused_by_name(tmp_path, wording, what):
    """It says which way is left, and leaves no file."""
    kind, changes = "llama", {}
    if what == "architecture":
        kind = "gpt_neox"
    elif what == "split":
        spaces = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])
        changes = {"tokenizer": byte_tokenizer(spaces)}
    elif what == "rope":
        changes = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}
    elif what == "window":
        kind, changes = "mistral", {"sliding_window": 16}
    folder = folder_of(tmp_path / "model", kind, **changes)
    if what == "words":
        tree = json.loads((folder / "tokenizer.json").read_text())
        tree["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
        (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UsageError) as caught:
        written(folder, tmp_path / "model.gguf")
    wording(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


# A llama.cpp


@pytest.fixture
def llama_cpp(tmp_path):
    """A folder like llama.cpp's: its converter and quantizer write down how they were called."""
    place = tmp_path / "llama.cpp"
    (place / "build" / "bin").mkdir(parents=True)
    (place / "convert_hf_to_gguf.py").write_text(
        "import pathlib, sys\n"
        "out = sys.argv[sys.argv.index('--outfile') + 1]\n"
        "pathlib.Path(out).write_text('GGUF of ' + ' '.join(sys.argv[-2:]))\n"
    )
    quantizer = place / "build" / "bin" / "llama-quantize"
    quantizer.write_text('#!/bin/sh\necho "$(cat "$1"), $3" > "$2"\n')
    quantizer.chmod(0o755)
    return place


@pytest.mark.parametrize(
    ("quantize", "expected"),
    [
        (None, "GGUF of --outtype bf16"),
        ("q8_0", "GGUF of --outtype q8_0"),
        ("q4_k_m", "GGUF of --outtype bf16, q4_k_m\n"),
    ],
)
def test_a_llama_cpp_converts_and_quantizes(tmp_path, llama_cpp, quantize, expected):
    """Its converter knows every architecture; only q4_k_m takes the quantizer."""
    folder = folder_of(tmp_path / "model", "gpt_neox", dtype=torch.bfloat16)
    assert written(folder, tmp_path / "model.gguf", quantize, llama_cpp).read_text() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.cpp", "model", "model.gguf"]


def test_a_quantizer_alone_takes_what_the_package_writes(tmp_path, llama_cpp):
    """The binaries of a release come without the converter."""
    (llama_cpp / "convert_hf_to_gguf.py").unlink()
    (llama_cpp / "build" / "bin" / "llama-quantize").write_text('#!/bin/sh\ncp "$1" "$2"\n')
    folder = folder_of(tmp_path / "model")
    written(folder, tmp_path / "model.gguf", "q4_k_m", llama_cpp)
    assert torch.equal(logits(tmp_path, gguf_file="model.gguf"), logits(folder))


@pytest.mark.parametrize("what", ["no quantizer", "nothing named", "no converter"])
def test_a_program_that_is_not_there_is_named(tmp_path, llama_cpp, wording, what):
    """Before anything is written."""
    (llama_cpp / "build" / "bin" / "llama-quantize").unlink()
    (llama_cpp / "convert_hf_to_gguf.py").unlink()
    with pytest.raises(UsageError) as caught:
        written(
            tmp_path / "model",
            tmp_path / "model.gguf",
            None if what == "no converter" else "q4_k_m",
            None if what == "nothing named" else llama_cpp,
        )
    wording(caught.value)


@pytest.mark.parametrize("reason", ["ModuleNotFoundError: No module named 'sentencepiece'", "disk full"])
def test_a_program_that_fails_leaves_nothing(tmp_path, llama_cpp, wording, reason):
    """Its last line says why."""
    (llama_cpp / "convert_hf_to_gguf.py").write_text(f"import sys\nsys.exit({reason!r})\n")
    folder = folder_of(tmp_path / "model")
    with pytest.raises(ModelwrightError) as caught:
        written(folder, tmp_path / "model.gguf", None, llama_cpp)
    wording(caught.value, python=sys.executable)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.cpp", "model"]
