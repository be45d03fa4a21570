"""Bad base models: each gets its line before any work begins, without torch, and nothing is written."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from modelwright.core.api import Example, Message, ModelwrightError
from modelwright.core.chat.templates import read_template
from modelwright.core.config import read_run
from modelwright.core.models.hf_folder import check_base_folder, folder_problems, token_count
from modelwright.core.runner import check, open_run
from modelwright.core.stages.prepare.tokenizers import scratch_renderer
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


def header(folder: Path, text: bytes, *, hides: int = 0):
    """A safetensors file of a header, and of so many bytes at its end that are a tensor's."""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text) - hides) + text)


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
ONLY = (
    "and only safetensors are read (a pickle can run any code): save the model with save_pretrained() of a recent "
    "transformers"
)
TWO = "they are of two models, or one of them was changed; copy the model again"
AGAIN = "mend it, or copy it again"
NO_HEADER = "model.safetensors is no safetensors file: its header cannot be read; copy it again"
TRANSFORMERS = importlib.metadata.version("transformers")


def larger(tokens: int, rows: int, token: str) -> str:
    return (
        f"its tokenizer has {tokens} tokens and its embedding {rows} (vocab_size in config.json): the tokenizer is "
        f"another model's, or {token!r} was added without resizing the embedding"
    )


def unsized(folder: Path):
    """A config of another shape, which leaves the size of a head to the model."""
    edit(folder / "config.json", hidden_size=999, head_dim=None)


def in_text_config(folder: Path, **changes):
    """The numbers where models that also see have them."""
    edit(folder / "config.json", text_config={"hidden_size": 16, "num_attention_heads": 2, **changes})


CASES = {
    "no folder": (shutil.rmtree, ["there is no such folder"]),
    "a file": (made_a_file, ["this is a file: name the folder with its config.json"]),
    "an empty folder": (emptied, [NO_CONFIG, NO_TOKENIZER, NO_WEIGHTS]),
    "no config": (lambda f: (f / "config.json").unlink(), [NO_CONFIG]),
    "a folder for the config": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), [NO_CONFIG]),
    "an empty config": (
        lambda f: (f / "config.json").write_text(""),
        ["config.json is not JSON: Expecting value: line 1 column 1 (char 0); mend it, or copy it again"],
    ),
    "a config cut short": (
        lambda f: (f / "config.json").write_text('{"model_type": "lla'),
        [f"config.json is not JSON: Unterminated string starting at: line 1 column 16 (char 15); {AGAIN}"],
    ),
    "a config in UTF-16": (
        lambda f: (f / "config.json").write_bytes('["x"]'.encode("utf-16")),
        ["config.json is not UTF-8: byte 1 is 0xff; save it as such"],
    ),
    "a config in Latin-1": (
        lambda f: (f / "config.json").write_bytes(b'{"model_type": "\xe9"}'),
        ["config.json is not UTF-8: byte 17 is 0xe9; save it as such"],
    ),
    "a config with a byte order mark": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text(), encoding="utf-8-sig"),
        ["config.json begins with a byte order mark: save it as UTF-8 without one"],
    ),
    "a config that is deep": (
        lambda f: (f / "config.json").write_text("[" * 99999),
        ["config.json is not JSON that can be read: it nests too deep; copy it again"],
    ),
    "a config that is an array": (
        lambda f: (f / "config.json").write_text("[]"),
        ["config.json must hold a JSON object, not list: copy it again"],
    ),
    "an architecture that nobody knows": (
        lambda f: edit(f / "config.json", model_type="lama"),
        [
            (f'config.json has the model_type "lama", which transformers {TRANSFORMERS} does not know: correct it, or '
            "install a newer one (pip install -U transformers)")
        ],
    ),
    "a width that is not the weights'": (
        lambda f: edit(f / "config.json", hidden_size=999),
        [f"config.json says hidden_size 999, and in the weights model.embed_tokens.weight has 16 columns: {TWO}"],
    ),
    "more tokens than the weights have": (
        lambda f: edit(f / "config.json", vocab_size=129),
        [f"config.json says vocab_size 129, and in the weights model.embed_tokens.weight has 128 rows: {TWO}"],
    ),
    "a width that heads cannot share": (
        unsized,
        [
            ("config.json says hidden_size 999 and num_attention_heads 2: the one must be a multiple of the other, or "
            "head_dim be given")
        ],
    ),
    "a number in words": (
        lambda f: edit(f / "config.json", vocab_size="many"),
        ['config.json says vocab_size "many": it must be a whole number from 1'],
    ),
    "numbers of many kinds": (
        lambda f: edit(
            f / "config.json",
            hidden_size=16.0,
            num_hidden_layers=0,
            num_attention_heads=True,
            num_key_value_heads="x" * 99,
            head_dim={},
            intermediate_size=-1,
            max_position_embeddings=float("nan"),
        ),
        [
            "config.json says hidden_size 16.0: it must be a whole number from 1",
            "config.json says num_hidden_layers 0: it must be a whole number from 1",
            "config.json says num_attention_heads true: it must be a whole number from 1",
            f'config.json says num_key_value_heads "{"x" * 56}...: it must be a whole number from 1',
            "config.json says head_dim {}: it must be a whole number from 1",
            "config.json says intermediate_size -1: it must be a whole number from 0",
            "config.json says max_position_embeddings NaN: it must be a whole number",
        ],
    ),
    "a number in a text_config": (
        lambda f: in_text_config(f, vocab_size="128"),
        ['config.json says text_config.vocab_size "128": it must be a whole number from 1'],
    ),
    "a width in a text_config": (
        lambda f: in_text_config(f, hidden_size=15),
        [
            ("config.json says text_config.hidden_size 15 and text_config.num_attention_heads 2: the one must be a "
            "multiple of the other, or text_config.head_dim be given")
        ],
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
        [
            ("tokenizer.json is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); "
            "mend it, or copy it again")
        ],
    ),
    "a tokenizer with a byte order mark": (
        lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text(), encoding="utf-8-sig"),
        ["tokenizer.json begins with a byte order mark: save it as UTF-8 without one"],
    ),
    "a tokenizer's config that is no JSON": (
        lambda f: (f / "tokenizer_config.json").write_text("x"),
        ["tokenizer_config.json is not JSON: Expecting value: line 1 column 1 (char 0); mend it, or copy it again"],
    ),
    "a tokenizer without words": (
        lambda f: (f / "tokenizer.json").write_text('{"model": {}}'),
        ["tokenizer.json is no tokenizer: it has no model.vocab"],
    ),
    "a tokenizer that is larger than the embedding": (
        lambda f: edit(f / "config.json", vocab_size=9),
        lambda tokens: [larger(tokens, 9, "<|im_end|>")],
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
        ["this is an adapter: merge it into its base (modelwright models merge ADDRESS), and take that"],
    ),
    "weights cut short": (
        lambda f: header(f, b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}' + b"12345678", hides=8),
        ["model.safetensors is cut short: it has 76 of 77 bytes; copy it again"],
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
        [NO_HEADER],
    ),
    "a header that is an array": (
        lambda f: header(f, b"[1]"),
        [NO_HEADER],
    ),
    "a header of other things": (
        lambda f: header(f, b'{"a": {"data_offsets": "x"}}'),
        [NO_HEADER],
    ),
    "a shard that is missing": (
        lambda f: sharded(f, {"x": "a.safetensors", "y": "b.safetensors"}),
        ["b.safetensors is missing, which model.safetensors.index.json names: copy the model again"],
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
    added = json.loads((base / "tokenizer.json").read_text())["added_tokens"]
    spoil(base)
    if callable(expected):
        expected = expected(max(token["id"] for token in added) + 1)
    assert lines() == [f"/base: {line}" for line in expected]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_may_not_be_read(name, base, lines, permissions_count):
    """The system's own reason is given."""
    (base / name).chmod(0)
    assert lines() == [f"/base: {name} cannot be read: Permission denied"]


EMPTY = "the registry is empty in sqlite:////home/registry.db"
ADDRESS = "expected NAME (its newest version), NAME@VERSION such as math@3, or @ALIAS such as @production"
BASE = (
    "expected a folder (with ./ or / in front), a model of the registry (NAME, NAME@VERSION or @ALIAS), or one of the "
    "hub (org/name or org/name@revision)"
)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("nowhere", f"error: there is no model 'nowhere': {EMPTY}"),
        ("nowhere@1", f"error: there is no model 'nowhere@1': {EMPTY}"),
        ("@nobody", f"error: there is no model '@nobody': {EMPTY}"),
        ("Nowhere", f"error: 'Nowhere' is no model address: no model can have that name; {ADDRESS}"),
        ("n" * 300, f"error: '{'n' * 300}' is no model address: no model can have that name; {ADDRESS}"),
        ("a/b/c", f"'a/b/c': {BASE}"),
        ("a//b", f"'a//b': {BASE}"),
        ("a b/c", f"'a b/c': {BASE}"),
        ("org/model@", f"'org/model@': {BASE}"),
        (
            "org/" + "m" * 300,
            f"org/{'m' * 300}: this can be no model of the hub; a folder is written ./org/{'m' * 300}",
        ),
        ("org/model--x", "org/model--x: this can be no model of the hub; a folder is written ./org/model--x"),
        ("./" + "n" * 300, f"/{'n' * 300}: cannot be read: File name too long"),
    ],
)
def test_a_name_that_leads_to_no_model(source, line, lines):
    """A registry's name, a hub's, or neither."""
    assert lines(source) == [line]


TEMPLATES = {
    "{% if %}": "cannot be read, line 1: Expected an expression, got 'end of statement block'; mend it there",
    "x\n{{ messages | nosuch }}": "cannot be read, line 2: No filter named 'nosuch'; mend it there",
    "{% for x in y %}" * 30 + "{% endfor %}" * 30: (
        "cannot be read: too many statically nested blocks (<template>, line 72); nest less in it"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("where", ["base/chat_template.jinja", "base/tokenizer_config.json", "mine.jinja"])
def test_a_template_that_cannot_be_compiled_is_named(template, where, base, run_file, modelwright, tmp_path, home):
    """Before any work, whether it is the base's own or the user's; the base's own is not looked at beside another."""
    more = []
    if where == "base/tokenizer_config.json":
        (base / "chat_template.jinja").unlink()
        edit(tmp_path / where, chat_template=template)
    else:
        (tmp_path / where).write_text(template)
    if where == "mine.jinja":
        more = ["--set", 'model.chat_template="./mine.jinja"']
    done = modelwright("run", run_file(), *more)
    expected = f"error: {tmp_path / where}: the chat template {TEMPLATES[template]}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not home.exists()
    if where.startswith("base"):
        assert modelwright("prepare", run_file(), "--set", 'model.chat_template="chatml"').returncode == 0


TWO_MODELS = "they are of two models, or one was changed; copy the model again"
MET_WHEN_LOADED = {
    "its config.json cannot be used: Field 'rms_norm_eps' expected float, got str (value: 'x'); mend it there, or copy "
    "the model again": {"rms_norm_eps": "x"},
    "the model cannot be loaded: KeyError: 'nosuch'; look at its config.json, or copy the model again": {
        "hidden_act": "nosuch"
    },
    "its weights do not fit its config.json: model.layers.0.mlp.down_proj.weight has the shape [16, 32], and the "
    f"config makes it [16, 33], and so have 5 more: {TWO_MODELS}": {"intermediate_size": 33},
}


@pytest.mark.parametrize("line", MET_WHEN_LOADED)
def test_what_only_loading_finds_is_one_line_too(line, base, run_file, modelwright):
    """Which base, what of it, and what to do; after it was mended the same command goes on."""
    before = json.loads((base / "config.json").read_text())
    edit(base / "config.json", **MET_WHEN_LOADED[line])
    done = modelwright("run", run_file())
    assert done.returncode == 1
    told = [said for said in done.stderr.splitlines() if not said.startswith(("tiny ", "    "))]
    assert told == [f"error: {base}: {line}"]
    edit(base / "config.json", **before)
    done = modelwright("run", run_file())
    assert done.returncode == 0, done.stderr


def test_a_tokenizer_that_lacks_a_word_costs_the_rows_that_have_it(base, run_file, modelwright, home):
    """They are counted and shown, as other rows that cannot be read."""
    tree = json.loads((base / "tokenizer.json").read_text())
    tree["model"]["unk_token"] = "nowhere"
    (base / "tokenizer.json").write_text(json.dumps(tree))
    done = modelwright("prepare", run_file())
    expected = (
        "error: 40 of 40 rows cannot be read (100.0%; [data] max_rejected is 1.0%); the first is "
        "builtin:arithmetic/train:1: the tokenizer (tokenizer.json) fails on this text: WordLevel error: Missing [UNK] "
        f"token from the vocabulary; all are in {home}/runs/tiny/prepare/rejected.jsonl\n"
    )
    assert (done.returncode, done.stderr) == (1, expected)


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
from modelwright.core.models.hf_folder import check_base_folder
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


def test_a_token_that_was_added_may_lie_beyond_the_embedding_of_a_base(base):
    """Training makes the embedding fit; a folder that is to be served as it is must fit already."""
    add_token(base, "<think>", number=128, special=False)
    check_base_folder(base, "base")
    assert list(folder_problems(base)) == [larger(129, 128, "<think>")]
    assert token_count(base) == 129
