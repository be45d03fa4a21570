"""Where the paths of a configuration lead."""

from __future__ import annotations

from pathlib import Path

import pytest

BASE = """\
name = "tiny"
[model]
base = {base}
chat_template = {template}
[data]
format = "qa"
sources = [{{ path = {path} }}]
[train]
max_steps = 10
[registry]
url = {url}
"""


@pytest.fixture
def paths(read_one):
    """Reads a file with these paths in it, and gives what they became."""

    def paths(*overrides: str, path="'train.jsonl'", base="'./base'", template="'chatml'", url="'sqlite:////x.db'"):
        config = read_one(BASE.format(path=path, base=base, template=template, url=url), *overrides)
        return config.data.sources[0].path, config.model.base, config.model.chat_template, config.registry.url

    return paths


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("train.jsonl", "{file}/train.jsonl"),
        ("./a/../b.jsonl", "{file}/b.jsonl"),
        ("../b.jsonl", "{up}/b.jsonl"),
        ("data/", "{file}/data"),
        ("data/**/*.jsonl", "{file}/data/**/*.jsonl"),
        ("/data/x[12].jsonl", "/data/x[12].jsonl"),
        ("~/x.jsonl", "/home/someone/x.jsonl"),
        ("./~x.jsonl", "{file}/~x.jsonl"),
        ("builtin:arithmetic/train", "builtin:arithmetic/train"),
    ],
)
def test_a_data_path_resolves_against_the_file_and_from_set_against_the_working_directory(
    paths, tmp_path, monkeypatch, written, expected
):
    """Wherever the command is run, the file means the same; what is typed means what the shell would."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths(path=f"'{written}'")[0] == expected.format(file=tmp_path, up=tmp_path.parent)
    here = paths(f"data.sources.0.path='{written}'")[0]
    assert here == expected.format(file=tmp_path / "elsewhere", up=tmp_path)


def test_paths_in_a_variant_resolve_against_the_file(read, tmp_path):
    """A variant is part of it."""
    text = BASE.format(path="'x'", base="'./b'", template="'t.jinja'", url="'sqlite:///m.db'")
    (config,) = read(text + '[variants.a]\nmodel.base = "../other"\ndata.sources = [{ path = "a.jsonl" }]\n').configs
    assert (config.model.base, config.data.sources[0].path) == (f"{tmp_path.parent}/other", f"{tmp_path}/a.jsonl")


def test_a_folder_with_brackets_is_not_a_pattern(read_one, tmp_path, minimal, plugins):
    """A glob in a file that lies in `runs[1]/` looks into that folder; a plain name there stays plain."""
    from modelwright.core.config import read_run

    folder = tmp_path / "runs[1]"
    folder.mkdir()
    (folder / "a.jsonl").touch()
    (folder / "b[2].jsonl").touch()
    (folder / "run.toml").write_text(
        minimal.replace('path = "train.jsonl"', 'path = "*.jsonl"\n[[data.sources]]\npath = "a.jsonl"\n'
                        '[[data.sources]]\npath = "b[2].jsonl"')
    )  # fmt: skip
    (config,) = read_run(folder / "run.toml", plugins=plugins).configs
    pattern, plain, literal = (source.path for source in config.data.sources)
    assert sorted(map(str, Path("/").glob(pattern[1:]))) == [str(folder / "a.jsonl"), str(folder / "b[2].jsonl")]
    assert (plain, literal) == (str(folder / "a.jsonl"), str(folder / "b[2].jsonl"))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("gsm8k-math@3", "gsm8k-math@3"),
        ("@production", "@production"),
        ("organisation/model", "organisation/model"),
        ("present", "{file}/present"),
        ("./absent", "{file}/absent"),
        ("..", "{up}"),
        ("/models/base", "/models/base"),
        ("~/base", "/home/someone/base"),
    ],
)
def test_a_base_is_a_folder_where_it_is_written_like_one_or_is_one(paths, tmp_path, monkeypatch, written, expected):
    """Anything else is an address, and looked up later."""
    (tmp_path / "present").mkdir()
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths(base=f"'{written}'")[1] == expected.format(file=tmp_path, up=tmp_path.parent)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("chatml", "chatml"), ("chat.jinja", "{file}/chat.jinja"), ("templates/chat", "{file}/templates/chat")],
)
def test_a_chat_template_is_a_bare_word_or_a_file(paths, tmp_path, written, expected):
    """A built-in template has a bare word for a name."""
    assert paths(template=f"'{written}'")[2] == expected.format(file=tmp_path)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("sqlite:///models.db", "sqlite:///{file}/models.db"),
        ("sqlite:///../models.db?timeout=5", "sqlite:///{up}/models.db?timeout=5"),
        ("sqlite:////var/models.db", "sqlite:////var/models.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
    ],
)
def test_a_registrys_sqlite_file_resolves_like_any_path(paths, tmp_path, written, expected):
    """Three slashes and a relative path, as SQLAlchemy has it."""
    assert paths(url=f"'{written}'")[3] == expected.format(file=tmp_path, up=tmp_path.parent)


@pytest.mark.parametrize(
    "path", ['""', '"a\\u0000b"', '"https://x.org/a.jsonl"', '"~nobody-of-that-name/x"', "3"], ids=lambda path: path
)
def test_a_path_that_cannot_be_one(mistakes, path):
    """Reported at its key."""
    text = BASE.format(path=path, base="'./b'", template="'chatml'", url="'sqlite:////x.db'")
    assert mistakes(text) == ["run.toml:7 [data.sources.0] path"]
