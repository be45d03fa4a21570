"""Bad configuration files over the whole reader: whatever is in them, the answer is a configuration or its errors."""

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


@pytest.fixture(scope="module")
def installed():
    """The plugins that are installed."""
    return discover()


def lines_of(path: Path, installed, *overrides: str, variants=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_run(path, plugins=installed, overrides=overrides, variants=variants)
    assert caught.value.exit_code == 2
    assert all(line.isprintable() for line in caught.value.lines)
    return [line.replace(f"{path.parent}/", "") for line in caught.value.lines]


# Bytes: what any of the two syntaxes must be before it is either

EMPTY = "the file is empty: it needs name, [model], [data] and [train]"
BYTES = {
    "empty": (b"", f"1: {EMPTY}"),
    "white space": (b" \n\r\n\t\n", f"1: {EMPTY}"),
    "UTF-16": (RUN.encode("utf-16"), "1: byte 0xff is not UTF-8: save the file as UTF-8"),
    "UTF-16 without a mark": ("é".encode("utf-16-le"), "1: byte 0xe9 is not UTF-8: save the file as UTF-8"),
    "UTF-32": (codecs.BOM_UTF32_BE + RUN.encode("utf-32-be"), "1: byte 0xfe is not UTF-8: save the file as UTF-8"),
    "Latin-1": (b"# fine\n# caf\xe9\n" + RUN.encode(), "2: byte 0xe9 is not UTF-8: save the file as UTF-8"),
    "BOM": (codecs.BOM_UTF8 + RUN.encode(), "1: it begins with a byte order mark: save the file as UTF-8 without one"),
    "a lone surrogate": (b'# "\xed\xa0\x80"\n', "1: byte 0xed is not UTF-8: save the file as UTF-8"),
    "a character cut short": (RUN.encode() + b"# \xf0\x9f\x99", "9: byte 0xf0 is not UTF-8: save the file as UTF-8"),
    "huge": (b"#" * (2**20 + 1), " the file is larger than 1 MiB: this is no configuration"),
    "a gzip": (b"\x1f\x8b\x08\x00\x00\x00", "1: byte 0x8b is not UTF-8: save the file as UTF-8"),
}


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".yml", "", ".json"])
@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_text(name, suffix, tmp_path, installed):
    """One line, the same for both syntaxes; and no evaluation file either."""
    content, expected = BYTES[name]
    path = tmp_path / f"run{suffix}"
    path.write_bytes(content)
    assert lines_of(path, installed) == [f"run{suffix}:{expected}"]
    assert not is_eval_file(path)
    with pytest.raises(ConfigError) as caught:
        read_eval(path, plugins=installed)
    evaluation = expected.replace("name, [model], [data] and [train]", "models and [[evaluate]]")
    assert [line.replace(f"{tmp_path}/", "") for line in caught.value.lines] == [f"run{suffix}:{evaluation}"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("run.toml", RUN.replace("tiny", "ti\0ny"), "run.toml:1:11: not valid TOML: Illegal character '\\x00'"),
        ("run.toml", RUN.replace("tiny", "ti\\u0000ny"), "run.toml:1 name: must be a lower-case letter"),
        (
            "run.toml",
            RUN.replace("tiny", "\\ud800"),
            "run.toml:1:15: not valid TOML: Escaped character is not a Unicode",
        ),
        ("run.toml", YAML, "run.toml:1:5: not valid TOML: Expected '=' after a key in a key/value pair"),
        ("run.toml", json.dumps({"name": "x"}), "run.toml:1:1: not valid TOML: Invalid statement"),
        (
            "run.toml",
            RUN.replace("\n", "\r"),
            "run.toml:1:14: not valid TOML: Expected newline or end of document after",
        ),
        ("run.yaml", YAML.replace("tiny", "ti\0ny"), "run.yaml:1: not valid YAML: the character U+0000 is not allowed"),
        ("run.yaml", YAML.replace("tiny", '"ti\\0ny"'), "run.yaml:1 name: must be a lower-case letter"),
        (
            "run.yaml",
            YAML.replace("tiny", '"\\ud800"'),
            "run.yaml:1:7: not valid YAML: an escape such as \\ud800 is half",
        ),
        ("run.yaml", RUN, 'run.yaml:1: the file must be a table of keys (key: value), not "name = '),
        ("run.json", json.dumps({"name": "x"}), "run.json:1:1: not valid TOML: Invalid statement"),
    ],
)
def test_text_that_is_no_configuration(name, content, line, tmp_path, installed):
    """Said with line and column."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    (found, *_) = lines_of(path, installed)
    assert found.startswith(line)


@pytest.mark.parametrize(("name", "content"), [("run.toml", RUN), ("run.yaml", YAML)])
def test_windows_and_mixed_line_ends_are_read(name, content, tmp_path, installed):
    """Wherever the file was edited; its lines are counted as an editor does."""
    path = tmp_path / name
    for text in (content.replace("\n", "\r\n"), content.replace("\n", "\r\n", 2)):
        path.write_bytes(text.encode())
        assert read_run(path, plugins=installed).configs[0].name == "tiny"
        path.write_bytes(text.replace("max_steps", "max_stps").encode())
        line = content.partition("max_steps")[0].count("\n") + 1
        expected = f"{name}:{line} [train] max_stps: unknown key, did you mean max_steps?"
        assert expected in lines_of(path, installed)


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_what_is_no_file(suffix, tmp_path, installed):
    """A folder, a file for a folder, a link to nowhere or to itself, a special file, a name that no file can have."""
    kind = {".toml": "TOML", ".yaml": "YAML"}[suffix]
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"file{suffix}").write_text("x")
    (tmp_path / f"gone{suffix}").symlink_to("nowhere")
    (tmp_path / f"round{suffix}").symlink_to(f"round{suffix}")
    os.mkfifo(tmp_path / f"pipe{suffix}")
    expected = {
        f"folder{suffix}": f"this is a folder: name the {kind} file",
        f"file{suffix}/run{suffix}": "cannot be read: Not a directory",
        f"gone{suffix}": "there is no such file",
        f"round{suffix}": "cannot be read: Too many levels of symbolic links",
        f"pipe{suffix}": f"this is no ordinary file: name a {kind} file",
        f"nowhere{suffix}": "there is no such file",
        f"nowhere/run{suffix}": "there is no such file",
        "n" * 300 + suffix: "cannot be read: File name too long",
        f"a\0b{suffix}": "cannot be read: embedded null byte",
    }
    for name, message in expected.items():
        (line,) = lines_of(tmp_path / name, installed)
        assert line.endswith(f": {message}")
        assert not is_eval_file(tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path, installed, permissions_count):
    """The system's own reason."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    path.chmod(0)
    assert lines_of(path, installed) == ["run.toml: cannot be read: Permission denied"]


# Names

SHORT = "must have 128 or fewer characters, not 129"
ALIAS = "must be a lower-case letter or digit, then any of a-z 0-9 . _ -, not all of them digits, not"
URL = "must be a URL such as sqlite:///registry.db, not"
KEY_VALUE = "must be KEY=VALUE, such as --set train.max_steps=100"
LOWER = "must be a lower-case letter, then any of a-z 0-9 . _ -, not"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("name='a/b'", f'--set name: {LOWER} "a/b"'),
        ("name='../b'", f'--set name: {LOWER} "../b"'),
        ("name='.'", f'--set name: {LOWER} "."'),
        ("name='..'", f'--set name: {LOWER} ".."'),
        ("name=''", f'--set name: {LOWER} ""'),
        ("name='@x'", f'--set name: {LOWER} "@x"'),
        ("name='a b'", f'--set name: {LOWER} "a b"'),
        ("name='é'", f'--set name: {LOWER} "é"'),
        ('name="a\\nb"', f'--set name: {LOWER} "a\\u000ab"'),
        (f"name='{'n' * 300}'", "--set name: must have 128 or fewer characters, not 300"),
        (f"evaluate=[{{name='{'n' * 129}', path='x', metrics=['exact_match']}}]", f"--set evaluate.0.name: {SHORT}"),
        (f"registry.promote.alias='{'n' * 129}'", f"--set registry.promote.alias: {SHORT}"),
        ("data.format='a/b'", "--set data.format: there is no format 'a/b' (there are: …)"),
        ("data.format='.'", "--set data.format: there is no format '.' (there are: …)"),
        (f"data.format='{'m' * 300}'", f"--set data.format: there is no format '{'m' * 300}' (there are: …)"),
        (
            "train.trainer='../local'",
            "--set train.trainer: there is no trainer '../local', did you mean 'local'? (there are: …)",
        ),
        (
            "evaluate=[{name='a/b', path='x', metrics=['exact_match']}]",
            '--set evaluate.0.name: must be a lower-case letter, then any of a-z 0-9 _ -, not "a/b"',
        ),
        (
            "evaluate=[{name='a', path='', metrics=['a.b']}]",
            (
                "--set evaluate.0.path: must not be empty\n"
                "--set evaluate.0.metrics.0: there is no metric 'a.b' (there are: …)"
            ),
        ),
        ("registry.promote.alias='a/b'", f'--set registry.promote.alias: {ALIAS} "a/b"'),
        ("registry.promote.alias='1'", f'--set registry.promote.alias: {ALIAS} "1"'),
        ("registry.url='sqlite'", f'--set registry.url: {URL} "sqlite"'),
        ("registry.url='/x/y.db'", f'--set registry.url: {URL} "/x/y.db"'),
        ("registry.url='redis://x'", "--set registry.url: no registry backend serves 'redis' URLs (there are: …)"),
        (
            'data.sources.0.path="a\\u0000"',
            '--set data.sources.0.path: must not contain a NUL character, but is "a\\u0000"',
        ),
        ("data.sources.0.path='builtin:x'", None),
        ("model.scratch.vocab_size=1e3", "--set model.scratch.vocab_size: must be an integer, not 1000.0"),
        (
            "model.scratch.hidden_size=9999999999999999999999",
            "--set model.scratch.hidden_size: must be an integer of 64 bits, not 9999999999999999999999",
        ),
        ("train={}", None),
        ("train=[]", "--set train: must be a table, not an empty array"),
        ("train.options={ x = 1 }", "--set train.options.x: unknown key, expected …"),
        ("=", f'--set "=": {KEY_VALUE}'),
        ("seed", f'--set "seed": {KEY_VALUE}'),
        ("seed=", '--set seed: "" is not a TOML value: invalid value'),
        ("seed=1 2", """--set seed: "1 2" is not a TOML value: strings need quotes, --set 'seed="1 2"'"""),
        ("seed=1 # one", None),
        ("seed=nan", "--set seed: must be an integer, not nan"),
        ("seed=1979-05-27", "--set seed: must be an integer, not 1979-05-27"),
        ("'seed'=1", None),
        ('"se\\u0065d"=1', None),
        ("seed.=1", f'--set "seed.=1": {KEY_VALUE}'),
        (".seed=1", f'--set ".seed=1": {KEY_VALUE}'),
        ("seed = 1", None),
        ("extends='x.toml'", "--set extends: set the keys themselves: extends belongs in the file"),
        ("variants={}", "--set variants: set the key itself, and choose the variant with --variant"),
        ("data.sources.00.limit=1", None),
        (
            "data.sources.1.limit=1",
            '--set data.sources.1.limit: data.sources is an array without an entry "1" (it has indices 0 to 0)',
        ),
        ("data.sources.0.limit.x=1", "--set data.sources.0.limit: must be an integer, not a table"),
        ("\udcff=1", f'--set "\\udcff=1": {KEY_VALUE}'),
        ("seed='\udcff'", "--set seed: is not UTF-8"),
        ("x" * 5000 + "=1", f"--set {'x' * 5000}: unknown key, expected …"),
    ],
)
def test_names_and_odd_overrides(override, line, tmp_path, installed):
    """Each is taken, or gets its own line that begins with what was typed; "…" is what is installed, or the keys."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    if line is None:
        assert read_run(path, plugins=installed, overrides=[override]).configs
        return
    found = "\n".join(lines_of(path, installed, override))
    assert re.fullmatch(".*".join(map(re.escape, line.split("…"))), found), found


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nope", '--variant nope: there is no variant "nope"'),
        ("", '--variant "": there is no variant ""'),
        ("a/b", '--variant "a/b": there is no variant "a/b"'),
        ("v" * 300, "there is no variant"),
        ("a\nb", '--variant "a\\u000ab": there is no variant "a\\u000ab"'),
    ],
)
def test_variants_that_are_not_there(name, line, tmp_path, installed):
    """Of a file without any."""
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    assert line in lines_of(path, installed, variants=[name])[0]


def test_a_variant_whose_model_would_have_too_long_a_name(tmp_path, installed):
    """Both names may be right, and together too long for a folder."""
    path = tmp_path / "run.toml"
    path.write_text(f"{RUN.replace('tiny', 'n' * 100)}[variants.{'v' * 27}]\n[variants.{'w' * 28}]\n")
    message = f"the model's name would be {'n' * 40}…, of 129 characters: at most 128"
    assert lines_of(path, installed) == [f"run.toml:10 [variants] {'w' * 28}: {message}"]
    assert len(read_run(path, plugins=installed, variants=["v" * 27]).configs[0].name) == 128
    path.write_text(f"{RUN}[variants.{'v' * 300}]\n")
    assert "a variant's name must be a lower-case letter" in lines_of(path, installed)[0]


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
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def plain_tree(value):
    """Without what JSON or TOML cannot write."""
    if isinstance(value, dict):
        return {key: plain_tree(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain_tree(item) for item in value if item is not None]
    return value


def read_either(path: Path, installed) -> None:
    """Read a file as what it is; whatever is read survives the way to a worker."""
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


@quick
@given(tree=tables)
def test_any_tree_in_toml(tree, tmp_path, installed):
    """Read, or refused in lines."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(plain_tree(tree)), encoding="utf-8")
    read_either(path, installed)


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


@quick
@given(pieces=st.lists(st.sampled_from(SNIPPETS), max_size=25), suffix=st.sampled_from([".toml", ".yaml"]))
def test_any_text(pieces, suffix, tmp_path, installed):
    """However the signs of the two syntaxes are thrown together."""
    path = tmp_path / f"run{suffix}"
    path.write_text("".join(pieces), encoding="utf-8", newline="")
    read_either(path, installed)


@quick
@given(content=st.binary(max_size=80), suffix=st.sampled_from([".toml", ".yaml"]))
def test_any_bytes(content, suffix, tmp_path, installed):
    """Noise is refused."""
    path = tmp_path / f"run{suffix}"
    path.write_bytes(content)
    read_either(path, installed)


@pytest.mark.parametrize("opening", ["[", "{", "- ", "a: [", "? ", "&a [", "!!str "])
def test_yaml_that_is_nested_deeply(opening, tmp_path, installed):
    """Refused, without a crash and without waiting."""
    path = tmp_path / "run.yaml"
    path.write_text("a: " + opening * 5000 if opening != "- " else opening * 5000)
    (line,) = lines_of(path, installed)
    assert line.startswith("run.yaml:")


def test_the_command_says_it_on_standard_error_and_exits_with_2(modelwright, tmp_path):
    """For whatever command takes the file."""
    (tmp_path / "run.yaml").write_bytes(YAML.encode("utf-16"))
    for command in (["run"], ["train"], ["config", "check"], ["config", "show"]):
        done = modelwright(*command, "run.yaml")
        expected = "run.yaml:1: byte 0xff is not UTF-8: save the file as UTF-8\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    assert not (tmp_path / "home").exists()
