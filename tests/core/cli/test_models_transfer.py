"""`models export`, `models import` and `models card`, with models that transformers wrote and reads."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from attrs import evolve

from modelwright.core.api.records import wilson
from modelwright.core.chat.templates import CHATML
from modelwright.core.plugins import discover
from modelwright.core.registry import open_registry
from modelwright.core.testing.registry import new_model, write_model

RECORD = "modelwright-model.json"


def opened(home):
    return open_registry(f"sqlite:///{home}/registry.db", discover())


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A tiny Llama and its tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("saved") / "llama"
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=257,  # its template's <|im_end|>
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML}))
    return folder


@pytest.fixture
def source(saved, tmp_path):
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "source"))


@pytest.fixture
def registered(home, saved):
    """math@1, with figures, tags, and an alias that stays where it is."""
    registry = opened(home)
    registry.add(new_model(), saved)
    registry.add_metrics("math", 1, "gsm8k", {"exact_match": wilson(0.965, 200)})
    registry.set_tags("math", 1, {"team": "vision", "note": None})
    registry.set_alias("production", "math", 1)
    return registry.get("math")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another machine's home, from here on."""

    def move():
        monkeypatch.setenv("MODELWRIGHT_HOME", str(tmp_path / "elsewhere"))
        return opened(tmp_path / "elsewhere")

    return move


def digest(content):
    return hashlib.sha256(content).hexdigest()


def leftovers(folder):
    return [path.name for path in folder.rglob(".tmp-*")]


# There and back


@pytest.mark.parametrize("name", ["out", "out.tar", "out.tar.gz", "out.tgz"])
def test_an_exported_model_is_imported_as_it_was(registered, models, elsewhere, tmp_path, name):
    """Digest, lineage, configuration, tags and figures; the alias belonged to the other registry."""
    place = tmp_path / name
    assert models("export", "--no-verify", "@production", place) == (0, f"exported math@1 to {place}\n", "")
    registry = elsewhere()
    code, out, err = models("import", place, "--alias", "@staging")
    assert (code, err) == (0, "")
    assert out.startswith(f"imported math@1 (digest {registered.digest}) in sqlite:///")
    assert out.endswith("@staging: (new) → math@1\n")
    found = registry.get("math")
    assert found == evolve(registered, created=found.created, aliases=("staging",))
    assert registry.verify(found) == []
    assert leftovers(tmp_path) == []


def test_importing_again_gives_the_version_that_is_there(registered, models, elsewhere, tmp_path):
    """What was noted and measured there since stays; what it does not have yet is brought along."""
    models("export", "--no-verify", "math", tmp_path / "out")
    registry = elsewhere()
    models("import", tmp_path / "out")
    registry.set_tags("math", 1, {"team": "mine"})
    registry.add_metrics("math", 1, "gsm8k", {"exact_match": wilson(0.5, 10)})
    code, out, _ = models("import", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, found["added"], found["version"], found["tags"]) == (0, False, 1, {"team": "mine"})
    assert found["metrics"]["gsm8k"]["exact_match"]["n"] == 10
    assert len(registry.find()) == 1
    assert models("import", tmp_path / "out")[1].startswith("already registered: math@1 ")


def test_a_model_can_be_imported_under_another_name(registered, models, tmp_path):
    """Beside the one that it is a copy of."""
    models("export", "--no-verify", "math", tmp_path / "out")
    assert json.loads(models("import", tmp_path / "out", "--name", "guest", "--json")[1])["name"] == "guest"


def test_transformers_loads_what_was_exported(registered, models, saved, tmp_path):
    """Real files, its own card, and the same weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "new" / "out"
    models("export", "--no-verify", "math", out)
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert "`math@1`" in (out / "README.md").read_text()
    one, other = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, saved))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert (
        AutoTokenizer.from_pretrained(out)("ab")["input_ids"] == AutoTokenizer.from_pretrained(saved)("ab")["input_ids"]
    )


def test_an_exported_archive_is_the_same_each_time_and_has_its_record_first(registered, models, tmp_path):
    """So that it can be signed and compared, and a reader knows the sizes before the contents."""
    for name in ("a.tar.gz", "b.tgz"):
        models("export", "--no-verify", "math", tmp_path / name)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tgz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert archive.getnames()[:2] == ["math-1/modelwright-model.json", "math-1/README.md"]


def test_a_models_own_readme_is_kept(home, models, source, tmp_path):
    """The card replaces nothing."""
    (source / "README.md").write_text("mine")
    opened(home).add(new_model(), source)
    models("export", "--no-verify", "math", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "file", "dangling", "archive"])
def test_nothing_is_overwritten(registered, models, tmp_path, kind, wording):
    """What is there stays."""
    place = tmp_path / ("out.tar" if kind == "archive" else "out")
    if kind == "folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif kind == "dangling":
        place.symlink_to("nowhere")
    else:
        place.write_text("mine")
    code, out, err = models("export", "--no-verify", "math", place)
    assert (code, out) == (2, "")
    wording(err)
    assert leftovers(tmp_path) == []


def test_an_empty_folder_is_filled(registered, models, tmp_path):
    """As after `mkdir out`."""
    (tmp_path / "out").mkdir()
    assert models("export", "--no-verify", "math", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_a_damaged_model_is_not_exported(registered, models, home, tmp_path, name, wording):
    """The digests are checked while the files are copied, and nothing is left of the attempt."""
    weights = next(file for file in registered.files if file.path == "model.safetensors")
    place = home / "files" / weights.sha256[:2] / weights.sha256
    place.chmod(0o644)
    place.write_bytes(b"\0" * weights.size)
    code, out, err = models("export", "--no-verify", "math", tmp_path / name)
    assert (code, out) == (1, "")
    wording(err)
    assert not (tmp_path / name).exists()
    assert leftovers(tmp_path) == []


# Cards


def test_a_card_is_written_to_standard_output_or_a_file(registered, models, tmp_path):
    """The same text; a pipe gets nothing else."""
    code, out, err = models("card", "@production")
    assert (code, err) == (0, "")
    assert out.startswith('---\nlibrary_name: "transformers"\n')
    assert "# `math@1`" in out
    assert models("card", "math", "--output", tmp_path / "card.md") == (0, f"wrote {tmp_path / 'card.md'}\n", "")
    assert (tmp_path / "card.md").read_text() == out


def test_a_card_of_nothing_names_the_registry(home, models, wording):
    """As every command about a model does."""
    code, out, err = models("card", "math")
    assert (code, out) == (1, "")
    assert f"sqlite:///{home}/registry.db" in err
    wording(err)


# Any folder


def test_any_hugging_face_folder_can_be_imported_and_served(home, models, source):
    """What belongs to git and to training is left out, and said to be; a base of its own says where it came from."""
    (source / ".gitattributes").write_text("x")
    (source / "training_args.bin").write_bytes(b"x")
    code, out, err = models("import", source, "--name", "guest")
    assert code == 0
    assert out.startswith("imported guest@1 (digest ")
    assert err.splitlines() == [
        "not imported: .gitattributes (hidden)",
        "not imported: training_args.bin (pickled: loading it could run any code)",
    ]
    registry = opened(home)
    version = registry.get("guest")
    assert (version.model.base, version.model.parent) == ("imported", None)
    from modelwright.core.chat.renderer import checked_renderer
    from modelwright.plugins.engines import TorchOptions
    from modelwright.plugins.engines.loading import load_model

    folder = registry.folder(version)
    assert checked_renderer(folder).fingerprint
    assert load_model(folder, TorchOptions(device="cpu")).context == 128
    assert models("import", source, "--name", "guest")[1].startswith("already registered: guest@1")
    assert leftovers(home) == []


def test_a_snapshot_of_the_hubs_cache_is_imported(home, models, saved, tmp_path):
    """Its files are links to contents beside them."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(saved.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert models("import", snapshot, "--name", "guest")[0] == 0
    assert opened(home).get("guest").files[0].path == "config.json"


def without(name):
    return lambda folder: (folder / name).unlink()


def changed(name, **values):
    def change(folder):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, **values}))

    return change


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def linked(folder):
    (folder / "passwords.json").symlink_to("/etc/passwd")


NOT_SERVED = {
    "no config": (without("config.json"), 2),
    "no tokenizer": (without("tokenizer.json"), 2),
    "no weights": (without("model.safetensors"), 2),
    "pickled weights": (pickled, 2),
    "no context length": (changed("config.json", max_position_embeddings=None), 2),
    "a small embedding": (changed("config.json", vocab_size=100), 2),
    "a broken template": (changed("tokenizer_config.json", chat_template="{% if"), 2),
    "a link out": (linked, 1),
}


@pytest.mark.parametrize("name", NOT_SERVED)
def test_what_could_not_be_served_is_refused(home, models, source, name, wording):
    """One line with the folder's name and what is wrong; nothing is registered."""
    spoil, code = NOT_SERVED[name]
    spoil(source)
    ended, out, err = models("import", source, "--name", "guest")
    errors = [line for line in err.splitlines() if not line.startswith("not imported: ")]
    assert (ended, out, len(errors)) == (code, "", 1)
    assert errors[0].startswith(f"error: {source}")
    wording(errors[0])
    assert opened(home).find() == []
    assert leftovers(home) == []


@pytest.mark.parametrize(
    "arguments",
    ["source", "source --name Guest", f"source --name {'g' * 129}", "source --name guest --alias 3", "nowhere"],
    ids=lambda arguments: arguments.replace("g" * 129, "long"),
)
def test_a_wrong_command_line_is_one_line(home, models, source, monkeypatch, arguments, wording):
    """Before anything is registered."""
    monkeypatch.chdir(source.parent)
    code, out, err = models("import", *arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    wording(err)
    assert opened(home).find() == []


def test_an_exported_folder_that_was_changed_is_refused(registered, models, elsewhere, tmp_path, wording):
    """A file with other bytes, and one that is gone; a file that was added is left out."""
    models("export", "--no-verify", "math", tmp_path / "out")
    registry = elsewhere()
    (tmp_path / "out" / "LICENSE").write_text("mine")
    config = (tmp_path / "out" / "config.json").read_text()
    (tmp_path / "out" / "config.json").write_text(config.replace("128", "129"))
    code, _, err = models("import", tmp_path / "out")
    assert code == 1
    assert "out/config.json" in err
    wording(
        err,
        size=len(config),
        found=digest((tmp_path / "out" / "config.json").read_bytes())[:12],
        expected=digest(config.encode())[:12],
    )
    (tmp_path / "out" / "config.json").unlink()
    code, _, err = models("import", tmp_path / "out")
    assert code == 1
    wording(err)
    (tmp_path / "out" / "config.json").write_text(config)
    assert registry.find() == []
    assert models("import", tmp_path / "out")[::2] == (0, "not imported: LICENSE\n")


def test_another_model_with_the_same_fingerprint_is_refused(registered, models, elsewhere, tmp_path, wording):
    """What is registered under a name does not become something else by an import."""
    models("export", "--no-verify", "math", tmp_path / "out")
    registry = elsewhere()
    registry.add(new_model(), write_model(tmp_path / "other"))
    code, _, err = models("import", tmp_path / "out")
    assert code == 1
    wording(err)
    assert models("import", tmp_path / "out", "--name", "math2")[0] == 0


# Archives from anybody


@pytest.fixture
def packed(registered, models, tmp_path, elsewhere):
    """Members of an exported archive, name → bytes, and a function that packs them with changes."""
    models("export", "--no-verify", "math", tmp_path / "good.tar")
    with tarfile.open(tmp_path / "good.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    elsewhere()

    def pack(change, *, name="bad.tar", mode="w"):
        with tarfile.open(tmp_path / name, mode) as archive:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                change(archive, info, content)
        return tmp_path / name

    return pack


def as_it_is(archive, info, content):
    archive.addfile(info, io.BytesIO(content))


def renamed(name):
    def change(archive, info, content):
        info.name = name if info.name.endswith("config.json") and "tok" not in info.name else info.name
        as_it_is(archive, info, content)

    return change


def typed(kind):
    def change(archive, info, content):
        if info.name == "math-1/config.json":
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            content = b""
        as_it_is(archive, info, content)

    return change


def longer(archive, info, content):
    if info.name == "math-1/config.json":
        info.size, content = info.size + 1, content + b" "
    as_it_is(archive, info, content)


def other(archive, info, content):
    as_it_is(archive, info, content.replace(b"128", b"129") if info.name == "math-1/config.json" else content)


def twice(archive, info, content):
    as_it_is(archive, info, content)
    if info.name == "math-1/config.json":
        as_it_is(archive, info, content)


def without_member(name):
    return lambda archive, info, content: None if info.name == name else as_it_is(archive, info, content)


def swelling(archive, info, content):
    if info.name.endswith(RECORD):
        bomb = tarfile.TarInfo("math-1/zeros")
        bomb.size = 200 << 20
        archive.addfile(bomb, io.BytesIO(bytes(bomb.size)))
    as_it_is(archive, info, content)


HOSTILE = {
    "a path above": renamed("../config.json"),
    "an absolute path": renamed("/tmp/config.json"),
    "a path above from within": renamed("math-1/../../x"),
    "another name": renamed("math-1/other.json"),
    "a symbolic link": typed(tarfile.SYMTYPE),
    "a hard link": typed(tarfile.LNKTYPE),
    "a device": typed(tarfile.CHRTYPE),
    "a FIFO": typed(tarfile.FIFOTYPE),
    "another size": longer,
    "another content": other,
    "a file twice": twice,
    "no record": without_member(f"math-1/{RECORD}"),
    "a bomb": swelling,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_is_not_to_be_trusted_is_refused(packed, registered, models, tmp_path, name, wording):
    """One line; nothing is written outside, registered, or left behind."""
    code, out, err = models("import", packed(HOSTILE[name], mode="w:gz" if name == "a bomb" else "w"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    size = next(file.size for file in registered.files if file.path == "config.json")
    wording(err, size=size, larger=size + 1)
    assert opened(tmp_path / "elsewhere").find() == []
    assert leftovers(tmp_path) == []


def test_an_archive_that_was_packed_again_is_imported(packed, models, tmp_path):
    """In any order, with or without a folder above."""
    order = []

    def without_folder(archive, info, content):
        info.name = f"./{info.name.removeprefix('math-1/')}"
        order.insert(0, (info, content))

    path = packed(without_folder)
    with tarfile.open(path, "w:gz") as archive:
        for info, content in order:
            as_it_is(archive, info, content)
    assert models("import", path)[::2] == (0, "")


@pytest.mark.parametrize("name", ["good.tar", "good.tar.gz"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6])
def test_an_archive_cut_short_is_one_line(registered, models, elsewhere, tmp_path, name, share):
    """Wherever the download ended."""
    models("export", "--no-verify", "math", tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    elsewhere()
    code, out, err = models("import", tmp_path / name)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{tmp_path / name} " in err
    assert leftovers(tmp_path) == []


OTHER_FILES = {"nothing": b"", "a zip": b"PK\x03\x04zip", "half a gzip": b"\x1f\x8b\x08", "a page": b"x" * 5000}
OTHER_FILES["a gzip of text"] = gzip.compress(b"no tar")


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_kind_is_one_line(models, tmp_path, name, wording):
    """A zip, half a gzip, a page of a web server."""
    (tmp_path / "x.tar").write_bytes(OTHER_FILES[name])
    code, out, err = models("import", tmp_path / "x.tar")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "x.tar" in err
    wording(err)


def test_a_header_that_claims_gigabytes_is_not_read(models, tmp_path, wording):
    """Extended headers are read in one piece, so their length is looked at first."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1 << 16))
    code, _, err = models("import", tmp_path / "x.tar")
    assert (code, err.count("\n")) == (1, 1)
    wording(err)


# Kills

KILLED = """
import os, signal, sys
countdown = int(sys.argv[1])

def point(name, arguments):
    global countdown
    writes = name == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and sys.argv[2] in str(arguments[0])
    if writes or name in ("os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir"):
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        countdown -= 1

from modelwright.core.cli import main
import modelwright.core.cli.models, modelwright.plugins.registries.sql, modelwright.core.models.hf_folder
sys.addaudithook(point)
main(sys.argv[3:])
"""


def kill_at(points, place, *arguments):
    """Runs a command that dies before its n-th change of the disk, for some n; yields after each."""
    for at in points:
        command = [sys.executable, "-B", "-c", KILLED, str(at), str(place), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        yield done
        if done.returncode != -9:
            return


@pytest.mark.long
@pytest.mark.parametrize("name", ["out", "out.tar.gz"])
def test_a_killed_export_leaves_nothing_or_the_whole(registered, models, tmp_path, name):
    """Under its name, that is; the same command works then."""
    place = tmp_path / "place"
    results = []
    for done in kill_at(range(0, 99, 3), place, "models", "export", "--no-verify", "math", place / name):
        results.append(done.returncode)
        if (place / name).exists():
            assert models("import", place / name, "--registry", f"sqlite:///{place}/r/registry.db")[0] == 0
        if done.returncode == -9:
            shutil.rmtree(place, ignore_errors=True)
    assert results.count(-9) >= 1
    assert models("export", "--no-verify", "math", place / "again")[0] == 0
    assert results[-1] == 0


@pytest.mark.long
def test_a_killed_import_leaves_nothing_or_the_whole_and_goes_on(registered, models, home, tmp_path, monkeypatch):
    """The same command brings what is missing; a version is there once."""
    models("export", "--no-verify", "math", tmp_path / "out")
    place = tmp_path / "elsewhere"
    monkeypatch.setenv("MODELWRIGHT_HOME", str(place))
    results = []
    for done in kill_at(range(2, 200, 7), place, "models", "import", tmp_path / "out"):
        results.append(done.returncode)
        for version in opened(place).find():
            assert opened(place).verify(version) == []
        assert models("import", tmp_path / "out")[0] == 0
        [found] = opened(place).find()
        assert dict(found.model.tags) == dict(registered.model.tags)
        assert found.metrics == registered.metrics
        if done.returncode == -9:
            shutil.rmtree(place)
    assert results.count(-9) >= 3
    assert results[-1] == 0


def test_what_a_killed_import_gathered_is_removed_a_day_later(home, models, source):
    """Younger ones may belong to an import that runs."""
    for age, name in ((90_000, "old"), (60, "young")):
        left = home / "cache" / f".tmp-import-{name}"
        left.mkdir(parents=True)
        (left / "half").write_text("x")
        os.utime(left, (0, left.stat().st_mtime - age))
    models("import", source, "--name", "guest")
    assert leftovers(home) == [".tmp-import-young"]
