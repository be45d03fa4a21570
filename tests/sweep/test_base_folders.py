"""Bad base models: each gets its line before any work begins, without torch, and nothing is written."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright.core.api import Example, Message, ModelwrightError
from modelwright.core.config import read_run
from modelwright.core.prepare.tokenizers import scratch_renderer
from modelwright.core.runner import check, open_run
from modelwright.core.templates import read_template
from modelwright.core.testing.trainer import write_model

RUN = """\
name = "tiny"
[model]
base = "{base}"
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
limit = 40
[data.tokens]
max_length = 64
[train]
max_steps = 2
batch_size = 2
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A whole model's folder."""
    folder = tmp_path_factory.mktemp("models") / "good"
    texts = "Ana has 2 apples and gets 3 more. How many apples does Ana have now? #### 0123456789"
    messages = (Message(role="user", content=texts), Message(role="assistant", content=texts))
    renderer = scratch_renderer("words", [Example(messages=messages)], 512, read_template("chatml"))
    write_model(folder, weights=True, vocabulary=128)
    renderer.save(folder)
    return folder


@pytest.fixture
def base(good, tmp_path) -> Path:
    """A copy of it, to be spoilt."""
    folder = tmp_path / "base"
    shutil.copytree(good, folder)
    return folder


@pytest.fixture
def run_file(tmp_path):
    def write(base="./base") -> Path:
        path = tmp_path / "run.toml"
        path.write_text(RUN.format(base=base))
        return path

    return write


@pytest.fixture
def lines(run_file, home, tmp_path):
    """The lines that a run gets before it begins."""

    def lines(base="./base") -> list[str]:
        read = read_run(run_file(base))
        with pytest.raises(ModelwrightError) as caught:
            check([open_run(config, read.plugins) for config in read.configs])
        assert not home.exists()
        return [line.replace(str(tmp_path), "").removeprefix("error: [model] base ") for line in caught.value.lines]

    return lines


def edit(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_token(folder: Path, content: str, *, number: int, special: bool):
    tree = json.loads((folder / "tokenizer.json").read_text())
    token = dict(id=number, content=content, special=special, single_word=False, lstrip=False, rstrip=False)  # noqa: C408
    tree["added_tokens"].append(token | {"normalized": False})
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def cut(path: Path, size: int):
    path.write_bytes(path.read_bytes()[:size])


def pickled(folder: Path, *names: str):
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"\x80\x04N.")


def sharded(folder: Path, weight_map):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def header(folder: Path, text: bytes):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def emptied(folder: Path):
    shutil.rmtree(folder)
    folder.mkdir()


def made_a_file(folder: Path):
    shutil.rmtree(folder)
    folder.write_text("x")


NO_TOKENIZER = (
    "there is no tokenizer.json: save the fast tokenizer there, with "
    "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
)
NO_CONFIG = "there is no config.json: expected a model folder in Hugging Face layout"
NO_WEIGHTS = "there are no weights: expected model.safetensors (a model from nothing is [model.scratch])"
ONLY = "and only safetensors are read (a pickle can run any code): save the model with save_pretrained() of a recent"
LARGER = (
    "its tokenizer has 129 tokens and its embedding 128 (vocab_size in config.json): the tokenizer is another model's"
)

CASES = {
    "no folder": (shutil.rmtree, ["there is no such folder"]),
    "a file": (made_a_file, ["this is a file: name the folder with its config.json"]),
    "an empty folder": (emptied, [NO_CONFIG, NO_TOKENIZER, NO_WEIGHTS]),
    "no config": (lambda f: (f / "config.json").unlink(), [NO_CONFIG]),
    "a folder for the config": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), [NO_CONFIG]),
    "an empty config": (lambda f: (f / "config.json").write_text(""), ["config.json is not JSON: Expecting value"]),
    "a config cut short": (lambda f: cut(f / "config.json", 30), ["config.json is not JSON:"]),
    "a config in UTF-16": (
        lambda f: (f / "config.json").write_bytes('["x"]'.encode("utf-16")),
        ["config.json must hold a JSON object, not list"],
    ),
    "a config of noise": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\xfd"), ["config.json is not JSON:"]),
    "a config that is deep": (lambda f: (f / "config.json").write_text("[" * 99999), ["config.json is not JSON:"]),
    "a config that is an array": (
        lambda f: (f / "config.json").write_text("[]"),
        ["config.json must hold a JSON object, not list"],
    ),
    "a config without architecture": (
        lambda f: (f / "config.json").write_text("{}"),
        ['config.json names no architecture: expected a key "model_type", such as "llama"'],
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), [NO_TOKENIZER]),
    "a slow tokenizer": (
        lambda f: ((f / "tokenizer.json").rename(f / "tokenizer.model"),),
        [NO_TOKENIZER],
    ),
    "a tokenizer that is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        ["tokenizer.json is not JSON: Expecting property name"],
    ),
    "a tokenizer without words": (
        lambda f: (f / "tokenizer.json").write_text('{"model": {}}'),
        ["tokenizer.json is no tokenizer: it has no model.vocab"],
    ),
    "a tokenizer that is larger than the embedding": (
        lambda f: edit(f / "config.json", vocab_size=9),
        ["its tokenizer has {tokens} tokens and its embedding 9 (vocab_size in config.json): the tokenizer is another"],
    ),
    "a token that was added": (
        lambda f: add_token(f, "<think>", number=128, special=False),
        [f"{LARGER}, or '<think>' was added without resizing the embedding"],
    ),
    "only pickled weights": (
        lambda f: pickled(f, "pytorch_model.bin"),
        [f"its weights are in pytorch_model.bin, {ONLY}"],
    ),
    "pickled weights of many kinds": (
        lambda f: pickled(f, "a.pt", "b.pth", "c.ckpt", "pytorch_model.bin.index.json"),
        [f"its weights are in a.pt, b.pth, c.ckpt, pytorch_model.bin.index.json, {ONLY}"],
    ),
    "no weights": (pickled, [NO_WEIGHTS]),
    "an adapter": (
        lambda f: (pickled(f), (f / "adapter_config.json").write_text("{}")),
        ["this is an adapter: merge it into its base model, and save that"],
    ),
    "weights cut short": (
        lambda f: cut(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1),
        ["model.safetensors is cut short: it has "],
    ),
    "weights cut in the header": (
        lambda f: cut(f / "model.safetensors", 20),
        ["model.safetensors is no safetensors file, or is cut short (20 bytes): copy it again"],
    ),
    "empty weights": (
        lambda f: cut(f / "model.safetensors", 0),
        ["model.safetensors is no safetensors file, or is cut short (0 bytes): copy it again"],
    ),
    "a pickle with another name": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"N" * 99),
        ["model.safetensors is no safetensors file, or is cut short (102 bytes): copy it again"],
    ),
    "a header of noise": (
        lambda f: header(f, b"\xff\xfe\xfd"),
        ["model.safetensors is no safetensors file: its header cannot be read"],
    ),
    "a header that is an array": (
        lambda f: header(f, b"[1]"),
        ["model.safetensors is no safetensors file: its header cannot be read"],
    ),
    "a header of other things": (
        lambda f: header(f, b'{"a": {"data_offsets": "x"}}'),
        ["model.safetensors is no safetensors file: its header cannot be read"],
    ),
    "a shard that is missing": (
        lambda f: sharded(f, {"x": "a.safetensors", "y": "b.safetensors"}),
        ["b.safetensors is missing, which model.safetensors.index.json names"],
    ),
    "a shard cut short": (
        lambda f: (sharded(f, {"x": "a.safetensors"}), cut(f / "a.safetensors", 100)),
        ["a.safetensors is no safetensors file, or is cut short (100 bytes): copy it again"],
    ),
    "a map of no shards": (
        lambda f: sharded(f, {}),
        ["model.safetensors.index.json names no files: expected a table weight_map"],
    ),
    "a link to nowhere": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("gone")),
        [NO_WEIGHTS],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_base_gets_a_line_for_each_thing_that_is_wrong(name, base, lines):
    """What, where, and what to do."""
    spoil, expected = CASES[name]
    vocabulary = json.loads((base / "tokenizer.json").read_text())
    largest = max(token["id"] for token in vocabulary["added_tokens"])
    spoil(base)
    found = lines()
    assert len(found) == len(expected)
    for line, wanted in zip(found, expected, strict=True):
        assert line.startswith(f"/base: {wanted.replace('{tokens}', str(largest + 1))}")
        assert line.isprintable()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_may_not_be_read(name, base, lines, permissions_count):
    """The system's own reason is given."""
    (base / name).chmod(0)
    assert lines() == [f"/base: {name} cannot be read: Permission denied"]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("nowhere", "error: there is no model 'nowhere': the registry is empty"),
        ("nowhere@1", "error: there is no model 'nowhere@1': the registry is empty"),
        ("@nobody", "error: there is no model '@nobody': the registry is empty"),
        ("Nowhere", "error: 'Nowhere' is no model address: no model can have that name; expected NAME"),
        ("n" * 300, f"error: '{'n' * 300}' is no model address: no model can have that name; expected NAME"),
        ("a/b/c", "'a/b/c': expected a folder (with ./ or / in front), a model of the registry"),
        ("a//b", "'a//b': expected a folder (with ./ or / in front), a model of the registry"),
        ("a b/c", "'a b/c': expected a folder (with ./ or / in front), a model of the registry"),
        ("org/model@", "'org/model@': expected a folder (with ./ or / in front), a model of the registry"),
        ("org/" + "m" * 300, f"org/{'m' * 300}: this can be no model of the hub; a folder is written ./org/m"),
        ("org/model--x", "org/model--x: this can be no model of the hub; a folder is written ./org/model--x"),
        ("./" + "n" * 300, f"/{'n' * 300}: cannot be read: File name too long"),
    ],
)
def test_a_name_that_leads_to_no_model(source, line, lines):
    """A registry's name, a hub's, or neither."""
    (found,) = lines(source)
    assert found.startswith(line)


def test_the_command_exits_with_2_and_imports_no_torch(base, run_file, modelwright, tmp_path, home):
    """The line on standard error, nothing on standard output, nothing written; `--dry-run` says the same."""
    (base / "tokenizer.json").unlink()
    for more in ([], ["--dry-run"]):
        done = modelwright("run", run_file(), *more)
        expected = f"error: [model] base {base}: {NO_TOKENIZER}\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not home.exists()
    script = """
import sys
from pathlib import Path
from modelwright.core.base_folder import check_base_folder
try:
    check_base_folder(Path("base"), "base")
finally:
    heavy = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub")
    print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n"


def test_a_special_token_that_nothing_names_may_lie_beyond_the_embedding(base, run_file, modelwright):
    """As in Gemma's text models, which keep a token for images; and the good folder trains."""
    add_token(base, "<image_soft_token>", number=128, special=True)
    done = modelwright("run", run_file())
    assert done.returncode == 0, done.stderr
    shown = json.loads(modelwright("models", "show", "tiny", "--json").stdout)
    assert shown["parent"] is None
