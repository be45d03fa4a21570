"""Bad base models: each gets its line before any work begins, without torch, and nothing is written."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import tiny_run

from modelwright.core.api import Example, Message, ModelwrightError, TrainSettings
from modelwright.core.chat.templates import read_template
from modelwright.core.cli import main
from modelwright.core.config import read_run
from modelwright.core.models.hf_folder import check_base_folder, folder_problems, token_count
from modelwright.core.runner import check, open_run
from modelwright.core.stages.prepare.tokenizers import scratch_renderer
from modelwright.core.testing.trainer import Recorder, make_job, write_model


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
        path.write_text(tiny_run(f"model.base = {json.dumps(base)}"))
        return path

    return write


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        return (end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def lines(run_file, home, tmp_path):
    """The lines that a run gets before it begins."""

    def lines(base="./base") -> list[str]:
        read = read_run(run_file(base))
        with pytest.raises(ModelwrightError) as caught:
            check([open_run(config, read.plugins) for config in read.configs])
        assert not home.exists()
        return [line.replace(str(tmp_path), "") for line in caught.value.lines]

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
    """A safetensors file of a header, and this number of bytes at its end that are a tensor's."""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text) - hides) + text)


def emptied(folder: Path):
    shutil.rmtree(folder)
    folder.mkdir()


def made_a_file(folder: Path):
    shutil.rmtree(folder)
    folder.write_text("x")


def unsized(folder: Path):
    """A config of another shape, which leaves the size of a head to the model."""
    edit(folder / "config.json", hidden_size=999, head_dim=None)


def in_text_config(folder: Path, **changes):
    """The numbers where models that also see have them."""
    edit(folder / "config.json", text_config={"hidden_size": 16, "num_attention_heads": 2, **changes})


CASES = {
    "no folder": (shutil.rmtree, 1),
    "a file": (made_a_file, 1),
    "an empty folder": (emptied, 3),
    "no config": (lambda f: (f / "config.json").unlink(), 1),
    "a folder for the config": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), 1),
    "an empty config": (lambda f: (f / "config.json").write_text(""), 1),
    "a config cut short": (lambda f: (f / "config.json").write_text('{"model_type": "lla'), 1),
    "a config in UTF-16": (lambda f: (f / "config.json").write_bytes('["x"]'.encode("utf-16")), 1),
    "a config in Latin-1": (lambda f: (f / "config.json").write_bytes(b'{"model_type": "\xe9"}'), 1),
    "a config with a byte order mark": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text(), encoding="utf-8-sig"),
        1,
    ),
    "a config that is deep": (lambda f: (f / "config.json").write_text("[" * 99999), 1),
    "a config that is an array": (lambda f: (f / "config.json").write_text("[]"), 1),
    "an architecture that nobody knows": (lambda f: edit(f / "config.json", model_type="lama"), 1),
    "a width that is not the weights'": (lambda f: edit(f / "config.json", hidden_size=999), 1),
    "more tokens than the weights have": (lambda f: edit(f / "config.json", vocab_size=129), 1),
    "a width that heads cannot share": (unsized, 1),
    "a number in words": (lambda f: edit(f / "config.json", vocab_size="many"), 1),
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
        7,
    ),
    "a number in a text_config": (lambda f: in_text_config(f, vocab_size="128"), 1),
    "a width in a text_config": (lambda f: in_text_config(f, hidden_size=15), 1),
    "a config without architecture": (lambda f: (f / "config.json").write_text("{}"), 1),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), 1),
    "a slow tokenizer": (lambda f: ((f / "tokenizer.json").rename(f / "tokenizer.model"),), 1),
    "a tokenizer that is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), 1),
    "a tokenizer with a byte order mark": (
        lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text(), encoding="utf-8-sig"),
        1,
    ),
    "a tokenizer's config that is no JSON": (lambda f: (f / "tokenizer_config.json").write_text("x"), 1),
    "a tokenizer without words": (lambda f: (f / "tokenizer.json").write_text('{"model": {}}'), 1),
    "a tokenizer that is larger than the embedding": (lambda f: edit(f / "config.json", vocab_size=9), 1),
    "only pickled weights": (lambda f: pickled(f, "pytorch_model.bin"), 1),
    "pickled weights of many kinds": (
        lambda f: pickled(f, "a.pt", "b.pth", "c.ckpt", "pytorch_model.bin.index.json"),
        1,
    ),
    "no weights": (pickled, 1),
    "an adapter": (lambda f: (pickled(f), (f / "adapter_config.json").write_text("{}")), 1),
    "weights cut short": (
        lambda f: header(f, b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}' + b"12345678", hides=8),
        1,
    ),
    "weights cut in the header": (lambda f: cut(f / "model.safetensors", 20), 1),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), 1),
    "a pickle with another name": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"N" * 99), 1),
    "a header of noise": (lambda f: header(f, b"\xff\xfe\xfd"), 1),
    "a header that is an array": (lambda f: header(f, b"[1]"), 1),
    "a header of other things": (lambda f: header(f, b'{"a": {"data_offsets": "x"}}'), 1),
    "a shard that is missing": (lambda f: sharded(f, {"x": "a.safetensors", "y": "b.safetensors"}), 1),
    "a shard cut short": (lambda f: (sharded(f, {"x": "a.safetensors"}), cut(f / "a.safetensors", 100)), 1),
    "a map of no shards": (lambda f: sharded(f, {}), 1),
    "a link to nowhere": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("gone")),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_base_gets_a_line_for_each_thing_that_is_wrong(name, base, lines, wording):
    """What, where, and what to do."""
    spoil, count = CASES[name]
    spoil(base)
    found = lines()
    assert len(found) == count
    for line in found:
        wording(line, version=importlib.metadata.version("transformers"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_may_not_be_read(name, base, lines, permissions_count, wording):
    """The system's own reason is given."""
    (base / name).chmod(0)
    [line] = lines()
    wording(line)


LONG = "n" * 300


@pytest.mark.parametrize(
    "source",
    [
        *("nowhere", "nowhere@1", "@nobody", "Nowhere", LONG, "a/b/c", "a//b", "a b/c", "org/model@", "org/model--x"),
        *(f"org/{LONG}", f"./{LONG}"),
    ],
    ids=lambda source: source.replace(LONG, "long"),
)
def test_a_name_that_leads_to_no_model(source, lines, wording):
    """A registry's name, a hub's, or neither."""
    [line] = lines(source)
    wording(line, long=LONG)


TEMPLATES = {
    "an empty if": "{% if %}",
    "an unknown filter": "x\n{{ messages | nosuch }}",
    "many loops": "{% for x in y %}" * 30 + "{% endfor %}" * 30,
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("where", ["base/chat_template.jinja", "base/tokenizer_config.json", "mine.jinja"])
def test_a_template_that_cannot_be_compiled_is_named(template, where, base, run_file, command, tmp_path, home, wording):
    """Before any work, whether it is the base's own or the user's; the base's own is not looked at beside another."""
    template, more = TEMPLATES[template], []
    if where == "base/tokenizer_config.json":
        (base / "chat_template.jinja").unlink()
        edit(tmp_path / where, chat_template=template)
    else:
        (tmp_path / where).write_text(template)
    if where == "mine.jinja":
        more = ["--set", 'model.chat_template="./mine.jinja"']
    code, out, err = command("run", run_file(), *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(tmp_path / where) in err
    wording(err)
    assert not home.exists()
    if where.startswith("base"):
        assert command("prepare", run_file(), "--set", 'model.chat_template="chatml"')[0] == 0


MET_WHEN_LOADED = {"a wrong type": {"rms_norm_eps": "x"}, "no function": {"hidden_act": "nosuch"}}
MET_WHEN_LOADED["a wrong width"] = {"intermediate_size": 33}


@pytest.mark.parametrize("name", MET_WHEN_LOADED)
def test_what_only_loading_finds_is_one_line_too(name, base, tmp_path, wording):
    """Which base, what is wrong with it, and what to do."""
    from modelwright.plugins.trainers.model.load import load_model

    edit(base / "config.json", **MET_WHEN_LOADED[name])
    job = make_job(tmp_path, Recorder(), TrainSettings(max_steps=1), model=base)
    with pytest.raises(ModelwrightError, match=re.escape(str(base))) as caught:
        load_model(job)
    wording(caught.value)


@pytest.mark.long
def test_a_run_goes_on_when_its_base_was_fixed(base, run_file, modelwright):
    """The same command, after the error of the training's worker."""
    before = json.loads((base / "config.json").read_text())
    edit(base / "config.json", hidden_act="nosuch")
    done = modelwright("run", run_file())
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if not line.startswith(("tiny ", "    "))]
    assert line.startswith(f"error: {base}: ")
    edit(base / "config.json", **before)
    done = modelwright("run", run_file())
    assert done.returncode == 0, done.stderr
    assert json.loads(modelwright("models", "show", "tiny", "--json").stdout)["parent"] is None


def test_a_tokenizer_that_lacks_a_word_costs_the_rows_that_have_it(base, run_file, command, wording):
    """They are counted and shown, as other rows that cannot be read."""
    tree = json.loads((base / "tokenizer.json").read_text())
    tree["model"]["unk_token"] = "nowhere"
    (base / "tokenizer.json").write_text(json.dumps(tree))
    code, _, err = command("prepare", run_file())
    assert code == 1
    assert "40 of 40" in err
    wording(err)


def test_the_command_exits_with_2_and_imports_no_torch(base, run_file, modelwright, tmp_path, home, wording):
    """The line on standard error, nothing on standard output, nothing written; `--dry-run` says the same."""
    (base / "tokenizer.json").unlink()
    for more in ([], ["--dry-run"]):
        done = modelwright("run", run_file(), *more)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        wording(done.stderr)
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


def test_a_special_token_that_nothing_names_may_lie_beyond_the_embedding(base):
    """As in Gemma's text models, which keep a token for images."""
    add_token(base, "<image_soft_token>", number=128, special=True)
    assert list(folder_problems(base)) == []
    assert token_count(base) <= 128


def test_a_token_that_was_added_may_lie_beyond_the_embedding_of_a_base(base, wording):
    """Training makes the embedding fit; a folder that is to be served as it is must fit already."""
    add_token(base, "<think>", number=128, special=False)
    check_base_folder(base, "base")
    [line] = folder_problems(base)
    wording(line)
    assert token_count(base) == 129
