"""Files that are no configuration at all: one clear line each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelwright.core.config import ConfigError, read_run


def refusal(path: Path, plugins) -> str:
    with pytest.raises(ConfigError) as caught:
        read_run(path, plugins=plugins)
    (line,) = caught.value.lines
    return line.replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'name = "x"\nseed = \n', "run.toml:2:8: not valid TOML: Invalid value"),
        (b'name = "x\nseed = 1', "run.toml:1:10: not valid TOML: Illegal character '\\n'"),
        (b"[model\n", "run.toml:1:7: not valid TOML: Expected ']' at the end of a table declaration"),
        (b"seed = 1\nseed = 2\n", "run.toml:2:9: not valid TOML: this key or table was given before"),
        (b"[data]\n[data]\n", "run.toml:2:6: not valid TOML: this key or table was given before"),
        (b"name: tiny\n", "run.toml:1:5: not valid TOML: Expected '=' after a key in a key/value pair"),
        (b"seed = 1\r\nname = x\r\n", "run.toml:2:8: not valid TOML: Invalid value"),
        (b'name = "x"\n\n# caf\xe9\n', "run.toml:3: byte 0xe9 is not UTF-8: save the file as UTF-8"),
        (b"\xff\xfen\x00", "run.toml:1: byte 0xff is not UTF-8: save the file as UTF-8"),
        (b'\xef\xbb\xbfname = "x"', "run.toml:1: it begins with a byte order mark: save the file as UTF-8 without one"),
        (b"", "run.toml:1: the file is empty: it needs name, [model], [data] and [train]"),
        (b" \n\n", "run.toml:1: the file is empty: it needs name, [model], [data] and [train]"),
        (b"a = " + b"[" * 9999, "run.toml: cannot be read as TOML: TOML inline arrays/tables are nested"),
        (b"a = " + b"[" * 90 + b"]" * 90, "run.toml: tables and arrays are nested more than 64 deep"),
        (b".".join([b"a"] * 900) + b" = 1", "run.toml: tables and arrays are nested more than 64 deep"),
        (b"seed = " + b"9" * 9999, "run.toml: cannot be read as TOML: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_file_that_is_no_toml_gets_one_line_with_its_place(tmp_path, plugins, content, line):
    """Line and column where TOML names them."""
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    assert refusal(path, plugins).startswith(line)


def test_a_missing_file_a_folder_and_a_special_file(tmp_path, plugins):
    """Each is called what it is, and nothing waits for a pipe to be written."""
    assert refusal(tmp_path / "run.toml", plugins) == "run.toml: there is no such file"
    assert refusal(tmp_path / "no" / "run.toml", plugins) == "run.toml: there is no such file"
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder", plugins) == "folder: this is a folder: name the TOML file"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe", plugins) == "pipe: this is no ordinary file: name a TOML file"
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "file" / "run.toml", plugins).startswith("run.toml: cannot be read: Not a directory")
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 300), plugins)
    assert "cannot be read: embedded null byte" in refusal(tmp_path / "a\0b", plugins)


def test_a_file_that_may_not_be_read(tmp_path, plugins, permissions_count):
    """The system's own reason is given."""
    path = tmp_path / "run.toml"
    path.write_text('name = "x"')
    path.chmod(0)
    assert refusal(path, plugins) == "run.toml: cannot be read: Permission denied"


def test_the_file_is_named_as_the_caller_named_it(write, plugins, monkeypatch, tmp_path):
    """A relative path stays one in messages."""
    write('name = "x"\n[model.scratch]\n[train]\nmax_steps = 0\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_run(Path("run.toml"), plugins=plugins)
    assert caught.value.lines == (
        "run.toml:1 data: this table is required",
        "run.toml:4 [train] max_steps: must be > 0, not 0",
    )
