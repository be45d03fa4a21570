"""Bad configuration files over the whole reader: any content gives a configuration or its errors."""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples import examples
from modelwright.core.config import (
    ConfigError,
    eval_from_plain,
    from_plain,
    is_eval_file,
    read_eval,
    read_run,
    to_plain,
)
from modelwright.core.plugins import discover

# A person's file, not a built one: tests count its lines and change its text.
RUN = """\
name = "tiny"
[model.scratch]
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
[train]
max_steps = 2
"""
YAML = """\
name: tiny
model: {scratch: {}}
data: {format: math, sources: [{path: "builtin:arithmetic/train"}]}
train: {max_steps: 2}
"""
# Longer than any name may be.
LONG = "n" * 300


@pytest.fixture(scope="module")
def installed():
    """The plugins that are installed."""
    return discover()


@pytest.fixture
def lines_of(installed, wording):
    """The lines that a wrong file gets, without its folder; their wording is in tests/messages.txt."""

    def lines_of(path: Path, *overrides: str, variants=None, **places) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read_run(path, plugins=installed, overrides=overrides, variants=variants)
        assert caught.value.exit_code == 2
        assert all(line.isprintable() for line in caught.value.lines)
        lines = [line.replace(f"{path.parent}/", "") for line in caught.value.lines]
        for line in lines:
            # What is installed beside the built-in plugins does not matter here.
            wording(re.sub(r"\(there are: [^)]*\)", "(there are: …)", line), **places)
        return lines

    return lines_of


# Bytes: what any of the two syntaxes must be before it is either

BYTES = {
    "empty": (b"", "1"),
    "white space": (b" \n\r\n\t\n", "1"),
    "UTF-16": (RUN.encode("utf-16"), "1"),
    "UTF-16 without a mark": ("é".encode("utf-16-le"), "1"),
    "UTF-32": (codecs.BOM_UTF32_BE + RUN.encode("utf-32-be"), "1"),
    "Latin-1": (b"# fine\n# caf\xe9\n" + RUN.encode(), "2"),
    "BOM": (codecs.BOM_UTF8 + RUN.encode(), "1"),
    "a lone surrogate": (b'# "\xed\xa0\x80"\n', "1"),
    "a character cut short": (RUN.encode() + b"# \xf0\x9f\x99", "9"),
    "huge": (b"#" * (2**20 + 1), ""),
    "a gzip": (b"\x1f\x8b\x08\x00\x00\x00", "1"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_text(name, tmp_path, installed, wording):
    """One line, the same for both syntaxes; and no evaluation file either."""
    content, number = BYTES[name]
    messages = {read_run: set(), read_eval: set()}
    for suffix in (".toml", ".yaml", ".yml", "", ".json"):
        path = tmp_path / f"run{suffix}"
        path.write_bytes(content)
        assert not is_eval_file(path)
        for read, found in messages.items():
            with pytest.raises(ConfigError) as caught:
                read(path, plugins=installed)
            (line,) = caught.value.lines
            assert line.startswith(f"{path}:{number}")
            found.add(line.removeprefix(str(path)))
    for found in messages.values():
        (message,) = found
        wording(f"run{message}")


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        pytest.param("run.toml", RUN.replace("tiny", "ti\0ny"), ":1:11", id="NUL in TOML"),
        pytest.param("run.toml", RUN.replace("tiny", "ti\\u0000ny"), ":1 name", id="NUL escaped in TOML"),
        pytest.param("run.toml", RUN.replace("tiny", "\\ud800"), ":1:15", id="half a character in TOML"),
        pytest.param("run.toml", YAML, ":1:5", id="YAML called TOML"),
        pytest.param("run.toml", json.dumps({"name": "x"}), ":1:1", id="JSON called TOML"),
        pytest.param("run.toml", RUN.replace("\n", "\r"), ":1:14", id="CR alone in TOML"),
        pytest.param("run.yaml", YAML.replace("tiny", "ti\0ny"), ":1", id="NUL in YAML"),
        pytest.param("run.yaml", YAML.replace("tiny", '"ti\\0ny"'), ":1 name", id="NUL escaped in YAML"),
        pytest.param("run.yaml", YAML.replace("tiny", '"\\ud800"'), ":1:7", id="half a character in YAML"),
        pytest.param("run.yaml", RUN, ":1", id="TOML called YAML"),
        pytest.param("run.json", json.dumps({"name": "x"}), ":1:1", id="JSON"),
    ],
)
def test_text_that_is_not_a_configuration(name, content, place, tmp_path, lines_of):
    """Reported with line and column."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    (found, *_) = lines_of(path)
    assert found.startswith(f"{name}{place}: ")


@pytest.mark.parametrize(("name", "content"), [("run.toml", RUN), ("run.yaml", YAML)], ids=["toml", "yaml"])
def test_windows_and_mixed_line_ends_are_read(name, content, tmp_path, installed, lines_of):
    """Wherever the file was edited; its lines are counted as an editor does."""
    path = tmp_path / name
    for text in (content.replace("\n", "\r\n"), content.replace("\n", "\r\n", 2)):
        path.write_bytes(text.encode())
        assert read_run(path, plugins=installed).configs[0].name == "tiny"
        path.write_bytes(text.replace("max_steps", "max_stps").encode())
        line = content.partition("max_steps")[0].count("\n") + 1
        assert f"{name}:{line} [train] max_stps" in [found.partition(": ")[0] for found in lines_of(path)]


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_a_folder_instead_of_a_file(suffix, tmp_path, lines_of):
    """A folder, a file for a folder, a link to nowhere or to itself, a special file, a name that no file can have."""
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"file{suffix}").write_text("x")
    (tmp_path / f"gone{suffix}").symlink_to("nowhere")
    (tmp_path / f"round{suffix}").symlink_to(f"round{suffix}")
    os.mkfifo(tmp_path / f"pipe{suffix}")
    names = ["folder", f"file{suffix}/run", "gone", "round", "pipe", "nowhere", "nowhere/run", "n" * 300, "a\0b"]
    for name in names:
        (line,) = lines_of(tmp_path / f"{name}{suffix}", long="n" * 300)
        assert ": " in line
        assert not is_eval_file(tmp_path / f"{name}{suffix}")


def test_a_file_that_may_not_be_read(tmp_path, lines_of, permissions_count):
    """The system's own reason."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    path.chmod(0)
    assert len(lines_of(path)) == 1


# Names


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("name='a/b'", ["name"]),
        ("name='../b'", ["name"]),
        ("name='.'", ["name"]),
        ("name='..'", ["name"]),
        ("name=''", ["name"]),
        ("name='@x'", ["name"]),
        ("name='a b'", ["name"]),
        ("name='é'", ["name"]),
        ('name="a\\nb"', ["name"]),
        (f"name='{LONG}'", ["name"]),
        (f"evaluate=[{{name='{LONG}', path='x', metrics=['exact_match']}}]", ["evaluate.0.name"]),
        (f"registry.promote.alias='{LONG}'", ["registry.promote.alias"]),
        ("data.format='a/b'", ["data.format"]),
        ("data.format='.'", ["data.format"]),
        (f"data.format='{LONG}'", ["data.format"]),
        ("train.trainer='../local'", ["train.trainer"]),
        ("evaluate=[{name='a/b', path='x', metrics=['exact_match']}]", ["evaluate.0.name"]),
        ("evaluate=[{name='a', path='', metrics=['a.b']}]", ["evaluate.0.path", "evaluate.0.metrics.0"]),
        ("registry.promote.alias='a/b'", ["registry.promote.alias"]),
        ("registry.promote.alias='1'", ["registry.promote.alias"]),
        ("registry.url='sqlite'", ["registry.url"]),
        ("registry.url='/x/y.db'", ["registry.url"]),
        ("registry.url='redis://x'", ["registry.url"]),
        ('data.sources.0.path="a\\u0000"', ["data.sources.0.path"]),
        ("model.scratch.vocab_size=1e3", ["model.scratch.vocab_size"]),
        ("model.scratch.hidden_size=9999999999999999999999", ["model.scratch.hidden_size"]),
        ("train=[]", ["train"]),
        ("train.options={ x = 1 }", ["train.options.x"]),
        ("=", ['"="']),
        ("seed", ['"seed"']),
        ("seed=", ["seed"]),
        ("seed=1 2", ["seed"]),
        ("seed=nan", ["seed"]),
        ("seed=1979-05-27", ["seed"]),
        ("seed.=1", ['"seed.=1"']),
        (".seed=1", ['".seed=1"']),
        ("extends='x.toml'", ["extends"]),
        ("variants={}", ["variants"]),
        ("data.sources.1.limit=1", ["data.sources.1.limit"]),
        ("data.sources.0.limit.x=1", ["data.sources.0.limit"]),
        pytest.param("\udcff=1", ['"\\udcff=1"'], id="a key that is not UTF-8"),
        pytest.param("seed='\udcff'", ["seed"], id="a value that is not UTF-8"),
        (f"{LONG}=1", [LONG]),
    ],
    ids=lambda value: value.replace(LONG, "LONG") if isinstance(value, str) else ",".join(value).replace(LONG, "LONG"),
)
def test_a_wrong_override_gets_its_own_line(override, keys, tmp_path, lines_of):
    """It begins with what was typed."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    lines = lines_of(path, override, LONG=LONG)
    assert [line.partition(": ")[0] for line in lines] == [f"--set {key}" for key in keys]


@pytest.mark.parametrize(
    "override",
    [
        "data.sources.0.path='builtin:x'",
        "train={}",
        "seed=1 # one",
        "'seed'=1",
        '"se\\u0065d"=1',
        "seed = 1",
        "data.sources.00.limit=1",
    ],
)
def test_an_odd_override_is_taken(override, tmp_path, installed):
    """Everything that TOML allows."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    assert read_run(path, plugins=installed, overrides=[override]).configs


@pytest.mark.parametrize("name", ["nope", pytest.param("", id="empty"), "a/b", "a\nb", pytest.param(LONG, id="LONG")])
def test_variants_that_are_not_there(name, tmp_path, lines_of):
    """Of a file without any."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    (line,) = lines_of(path, variants=[name], LONG=LONG)
    assert line.startswith("--variant ")


def test_a_variant_whose_model_would_have_too_long_a_name(tmp_path, installed, lines_of):
    """Both names may be right, and together too long for a folder."""
    path = tmp_path / "run.toml"
    path.write_text(f"{RUN.replace('tiny', 'n' * 100)}[variants.{'v' * 27}]\n[variants.{'w' * 28}]\n")
    (line,) = lines_of(path, v="v" * 27, w="w" * 28)
    assert line.startswith(f"run.toml:10 [variants] {'w' * 28}: ")
    assert len(read_run(path, plugins=installed, variants=["v" * 27]).configs[0].name) == 128
    path.write_text(f"{RUN}[variants.{LONG}]\n")
    assert lines_of(path, LONG=LONG)


# Anything

keys = st.text(max_size=6) | st.sampled_from(
    [
        "name",
        "model",
        "data",
        "train",
        "evaluate",
        "models",
        "extends",
        "variants",
        "plugins",
        "scratch",
        "sources",
        "path",
    ]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["math", "all", "run.toml", "~", "../x", "builtin:arithmetic/test", "exact_match", "x" * 300]),
    st.dates(),
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=15
)
tables = st.dictionaries(keys, trees, min_size=1, max_size=5)
quick = settings(
    max_examples=examples(120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def plain_tree(value):
    """Without what JSON or TOML cannot write."""
    if isinstance(value, dict):
        return {key: plain_tree(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain_tree(item) for item in value if item is not None]
    return value


def read_either(path: Path, installed) -> None:
    """Read a file as what it is; a configuration survives the way to a worker."""
    try:
        if is_eval_file(path):
            config = read_eval(path, plugins=installed).config
            assert eval_from_plain(json.loads(json.dumps(to_plain(config))), installed) == config
        else:
            for one in read_run(path, plugins=installed).configs:
                assert from_plain(json.loads(json.dumps(to_plain(one))), installed) == one
        lines = ["read"]
    except ConfigError as error:
        lines = [line.replace(str(path), "read", 1) for line in error.lines]
    assert lines
    for line in lines:
        assert line.isprintable()
        assert line.startswith("read")


@pytest.mark.long
@quick
@given(tree=tables)
def test_any_tree_in_toml(tree, tmp_path, installed):
    """Read, or refused in lines."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(plain_tree(tree)), encoding="utf-8")
    read_either(path, installed)


@pytest.mark.long
@quick
@given(tree=tables, indent=st.sampled_from([None, 2]))
def test_any_tree_in_yaml(tree, indent, tmp_path, installed):
    """JSON is YAML; with nulls, which TOML has not."""
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(tree, default=str, indent=indent), encoding="utf-8")
    read_either(path, installed)


SNIPPETS = [
    *(
        "name",
        ": ",
        " = ",
        "\n",
        "  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        '"',
        "'",
        "|",
        ">",
        "&a ",
        "*a",
        "<<: ",
        "!!str ",
        "#",
    ),
    *("---", "...", "\t", "%YAML 1.2", "? ", ",", "1", "2e-5", "no", "~", "é", "\u2028", "\x85", "extends", "models"),
]


@pytest.mark.long
@quick
@given(pieces=st.lists(st.sampled_from(SNIPPETS), max_size=25), suffix=st.sampled_from([".toml", ".yaml"]))
def test_any_text(pieces, suffix, tmp_path, installed):
    """However the signs of the two syntaxes are thrown together."""
    path = tmp_path / f"run{suffix}"
    path.write_text("".join(pieces), encoding="utf-8", newline="")
    read_either(path, installed)


@pytest.mark.long
@quick
@given(content=st.binary(max_size=80), suffix=st.sampled_from([".toml", ".yaml"]))
def test_any_bytes(content, suffix, tmp_path, installed):
    """Noise is refused."""
    path = tmp_path / f"run{suffix}"
    path.write_bytes(content)
    read_either(path, installed)


@pytest.mark.parametrize("opening", ["[", "{", "- ", "a: [", "? ", "&a [", "!!str "])
def test_yaml_that_is_nested_deeply(opening, tmp_path, lines_of):
    """Refused, without a crash and without waiting."""
    path = tmp_path / "run.yaml"
    path.write_text("a: " + opening * 5000 if opening != "- " else opening * 5000)
    (line,) = lines_of(path)
    assert line.startswith("run.yaml:")


def test_the_command_says_it_on_standard_error_and_exits_with_2(modelwright, tmp_path, wording):
    """For every command that takes the file."""
    (tmp_path / "run.yaml").write_bytes(YAML.encode("utf-16"))
    for command in (["run"], ["train"], ["config", "check"], ["config", "show"]):
        done = modelwright(*command, "run.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("run.yaml:1: ")
        wording(done.stderr)
    assert not (tmp_path / "home").exists()
