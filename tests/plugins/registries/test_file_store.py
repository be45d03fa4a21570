import os
import stat
import time

import pytest

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.registry import ModelFile, scan_model
from modelwright.core.testing.registry import write_model
from modelwright.plugins.registries.files import ABANDONED_AFTER, FileStore


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "files")


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "trained")


def contents(store):
    return sorted(path for path in store.root.glob("??/*") if path.is_file())


def test_a_content_is_kept_once_under_its_sha256_and_read_only(store, folder):
    """Two files of one content are one file of the store, in a folder of the first two digits."""
    (folder / "copy.json").write_bytes((folder / "config.json").read_bytes())
    files = scan_model(folder)
    store.add(folder, files)
    assert [path.name for path in contents(store)] == sorted({file.sha256 for file in files})
    assert len(contents(store)) == 3
    for path in contents(store):
        assert path.parent.name == path.name[:2]
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_the_umask_is_respected(store, folder):
    """Who keeps files from others keeps their models from others."""
    before = os.umask(0o077)
    try:
        store.add(folder, scan_model(folder))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in contents(store)} == {0o400}


def test_a_content_that_is_there_is_not_written_again(store, folder):
    """The inode stays the same: gigabytes are not copied twice."""
    files = scan_model(folder)
    store.add(folder, files)
    before = [path.stat().st_ino for path in contents(store)]
    store.add(folder, files)
    assert [path.stat().st_ino for path in contents(store)] == before


@pytest.mark.parametrize("left", [b"wei", b"weighty"])
def test_a_content_that_is_not_whole_is_replaced(store, folder, left):
    """A file cut short, or of other bytes, as a failing disk leaves it, does not pass for the content."""
    files = scan_model(folder)
    store.add(folder, files)
    weights = store.content(files[1].sha256)
    weights.chmod(0o644)
    weights.write_bytes(left)
    store.add(folder, files)
    assert weights.read_bytes() == b"weights"


def test_a_file_that_changes_while_it_is_added_is_refused(store, folder):
    """What is stored under a sha256 has it, even if others write to the folder meanwhile."""
    files = scan_model(folder)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(RegistryError, match=r"model\.safetensors changed"):
        store.add(folder, files)
    assert store.content(files[1].sha256).exists() is False
    assert list(store.root.rglob(".tmp-*")) == []


def test_what_a_killed_copy_left_is_removed_a_day_later(store, folder):
    """Younger leftovers may belong to a copy that runs."""
    files = scan_model(folder)
    store.add(folder, files)
    store.tree("d" * 64, files)
    old = [contents(store)[0].parent / ".tmp-old", store.root / "trees" / ".tmp-tree"]
    young = contents(store)[0].parent / ".tmp-young"
    old[0].write_bytes(b"half")
    old[1].mkdir()
    (old[1] / "link").symlink_to("nowhere")
    young.write_bytes(b"half")
    for left in old:
        os.utime(left, (0, time.time() - ABANDONED_AFTER - 60))
    store.add(folder, files)
    assert [left.exists() for left in (*old, young)] == [False, False, True]


def test_a_tree_is_links_into_the_store_and_built_once(store, folder, tmp_path):
    """It survives a move of the whole registry, since the links are relative."""
    files = scan_model(folder)
    store.add(folder, files)
    tree = store.tree("d" * 64, files)
    inode = tree.stat().st_ino
    assert store.tree("d" * 64, files).stat().st_ino == inode
    moved = store.root.rename(tmp_path / "moved") / "trees" / tree.name
    for file in files:
        assert (moved / file.path).is_symlink()
        assert (moved / file.path).read_bytes() == (folder / file.path).read_bytes()


def remove(tree):
    (tree / "config.json").unlink()


def replace(tree):
    (tree / "config.json").unlink()
    (tree / "config.json").write_text("mine")


def redirect(tree):
    (tree / "config.json").unlink()
    (tree / "config.json").symlink_to("/etc/hostname")


def extend(tree):
    (tree / "extra.json").write_text("mine")


def take_away(tree):
    tree.rename(tree.with_name("elsewhere"))
    tree.write_text("no folder")


@pytest.mark.parametrize("alter", [remove, replace, redirect, extend, take_away])
def test_an_altered_tree_is_built_again(store, folder, alter):
    """Changing a model's folder changes nothing that is loaded later, and nothing in the store."""
    files = scan_model(folder)
    store.add(folder, files)
    tree = store.tree("d" * 64, files)
    alter(tree)
    assert store.tree("d" * 64, files) == tree
    found = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert found == {file.path: (folder / file.path).read_bytes() for file in files}
    assert list(store.root.rglob(".tmp-*")) == []


def test_a_missing_content_is_named(store, folder):
    """A tree is not built over a hole: the error names the file and what to do."""
    files = scan_model(folder)
    store.add(folder, files)
    lost = store.content(files[1].sha256)
    lost.unlink()
    with pytest.raises(RegistryError, match=rf"{lost} is missing.*model\.safetensors"):
        store.tree("d" * 64, files)
    assert not store.holds(ModelFile(path="x", sha256="ab" * 32, size=1))


def test_hugging_face_loads_a_model_through_the_links(store, tmp_path):
    """Weights and tokenizer read from a tree are those that were saved."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "two": 1}, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    files = scan_model(folder)
    store.add(folder, files)
    tree = store.tree("d" * 64, files)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tree)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert transformers.AutoTokenizer.from_pretrained(tree)("two")["input_ids"] == [1]
