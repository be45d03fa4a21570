"""Files that are not a configuration at all: one clear line each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelwright.core.api.wording import printable
from modelwright.core.config import ConfigError, Problem, read_run


@pytest.fixture
def refusal(plugins, wording):
    """The one problem of a file."""

    def refusal(path: Path) -> Problem:
        with pytest.raises(ConfigError) as caught:
            read_run(path, plugins=plugins)
        (problem,) = caught.value.problems
        assert problem.source == printable(str(path))
        wording(problem)
        return problem

    return refusal


@pytest.mark.parametrize(
    ("content", "line", "column"),
    [
        (b'name = "x"\nseed = \n', 2, 8),
        (b'name = "x\nseed = 1', 1, 10),
        (b"[model\n", 1, 7),
        (b"seed = 1\nseed = 2\n", 2, 9),
        (b"[data]\n[data]\n", 2, 6),
        (b"name: tiny\n", 1, 5),
        (b"seed = 1\r\nname = x\r\n", 2, 8),
        (b'name = "x"\n\n# caf\xe9\n', 3, None),
        (b"\xff\xfen\x00", 1, None),
        (b'\xef\xbb\xbfname = "x"', 1, None),
        pytest.param(b"", 1, None, id="empty"),
        pytest.param(b" \n\n", 1, None, id="blank"),
        pytest.param(b"a = " + b"[" * 9999, None, None, id="9999 arrays, open"),
        pytest.param(b"a = " + b"[" * 90 + b"]" * 90, None, None, id="90 arrays"),
        pytest.param(b".".join([b"a"] * 900) + b" = 1", None, None, id="a key of 900 parts"),
        pytest.param(b"seed = " + b"9" * 9999, None, None, id="9999 digits"),
    ],
    ids=lambda value: value.decode("latin-1") if isinstance(value, bytes) else None,
)
def test_a_file_that_is_not_toml_gets_one_line_with_its_place(tmp_path, refusal, content, line, column):
    """Line and column where TOML names them."""
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    problem = refusal(path)
    assert (problem.line, problem.column) == (line, column)


def test_a_missing_file_a_folder_and_a_special_file(tmp_path, refusal):
    """Each is called what it is, and nothing waits for a pipe to be written."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    for name in ("run.toml", "no/run.toml", "folder", "pipe", "file/run.toml", "x" * 300, "a\0b"):
        assert refusal(tmp_path / name).line is None


def test_a_file_that_may_not_be_read(tmp_path, refusal, permissions_count):
    """The system's own reason is given."""
    path = tmp_path / "run.toml"
    path.write_text('name = "x"')
    path.chmod(0)
    refusal(path)


def test_the_file_is_named_as_the_caller_named_it(write, plugins, monkeypatch, tmp_path, places):
    """A relative path stays one in messages."""
    write('name = "x"\n[model.scratch]\n[train]\nmax_steps = 0\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_run(Path("run.toml"), plugins=plugins)
    assert places(caught.value) == ["run.toml:1 data", "run.toml:4 [train] max_steps"]
