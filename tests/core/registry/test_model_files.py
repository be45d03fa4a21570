import os

import pytest

from modelwright.core.api.errors import RegistryError
from modelwright.core.api.registry import ModelFile, model_digest, scan_model
from modelwright.core.testing.registry import write_model


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "trained")


def test_files_are_listed_by_path_at_any_depth(folder):
    """Empty folders are not part of a model."""
    (folder / "empty").mkdir()
    assert [(file.path, file.size) for file in scan_model(folder)] == [
        ("config.json", 3),
        ("model.safetensors", 7),
        ("templates/chat.jinja", 15),
    ]


def test_the_digest_is_the_same_in_every_release():
    """It names models outside the registry too: in papers, responses and tickets."""
    files = [ModelFile(path="b", sha256="22", size=2), ModelFile(path="a", sha256="11", size=1)]
    # sha256sum of {"a":"11","b":"22"}
    assert model_digest(files) == "365c79c720b815daa08bf543679954d7ed91ff1bd6ec68cbca6634f4af935ffd"
    assert model_digest(reversed(files)) == model_digest(files)


def test_special_files_are_refused(folder):
    """A pipe would block its reader for ever."""
    os.mkfifo(folder / "pipe")
    with pytest.raises(RegistryError, match=r"pipe' cannot be registered: it is not a regular file"):
        scan_model(folder)


def test_unfinished_files_are_refused(folder):
    """What a killed writer left under a temporary name is not part of a model."""
    (folder / ".tmp-model.safetensors-1a2b").write_bytes(b"half")
    with pytest.raises(RegistryError, match="unfinished file"):
        scan_model(folder)


def test_a_name_that_is_not_utf8_is_refused(folder):
    """It could not be stored; the message can be printed."""
    (folder / os.fsdecode(b"\xff.json")).touch()
    with pytest.raises(RegistryError, match="not UTF-8") as caught:
        scan_model(folder)
    str(caught.value).encode()


def test_a_link_to_the_model_itself_is_followed(folder, tmp_path):
    """Only links inside are refused; a scratch disk's link to the folder is nobody's harm."""
    (tmp_path / "link").symlink_to(folder)
    assert scan_model(tmp_path / "link") == scan_model(folder)
