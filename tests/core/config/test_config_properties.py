"""What holds for any configuration, right or wrong, however it was made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.core.config import ConfigError, from_plain, read_run, to_plain

FULL = {
    "name": "tiny",
    "seed": 3,
    "model": {"scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "tokenizer": "bpe", "vocab_size": 99}},
    "data": {
        "format": "table",
        "max_rejected": 0.5,
        "options": {"question": "q"},
        "sources": [{"path": "a*.jsonl", "limit": 3}, {"path": "builtin:x/y", "fraction": 0.5}],
        "quality": {"deduplicate": False},
        "tokens": {"max_length": 64, "packing": "bucket", "turns": "last", "allow": ["thinking"]},
        "holdout": {"fraction": 0.1},
    },
    "train": {"trainer": "sgd", "epochs": 1.5, "processes": "auto", "options": {"momentum": 0.5}},
    "evaluate": [
        {"name": "one", "path": "t.jsonl", "metrics": ["exact_match"], "generation": {"stop": ["\n"]}},
        {"name": "two", "path": "t.jsonl", "metrics": ["math_accuracy"], "format": "qa", "options": {"style": "boxed"}},
    ],
    "registry": {
        "url": "sqlite:///m.db",
        "tags": {"a": "b"},
        "promote": {"alias": "best", "if": "one.exact_match > 0"},
    },
    "plugins": {"disable": ["x"], "prefer": {"metric.exact_match": "hand-made"}},
    "cluster": {"nodes": 2, "time": "04:00:00", "setup": ["module load cuda"], "sbatch": {"constraint": "h200"}},
    "variants": {"a": {"train": {"epochs": 2}}, "b": {"data": {"sources": [{"path": "b.jsonl"}]}}},
}

PLACE = re.compile(r"(?P<file>.*run\.toml)(?::(?P<line>\d+))?(?::\d+)?(?: \[[^\]]*\])?(?: .+?)?: .+")

same_folder = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["auto", "qa", "table", "exact", "", "~", "./x", "a\0", "exact_match", "sgd"]),
    st.dates(),
    st.datetimes(),
    st.times(),
)
words = st.text(max_size=5) | st.sampled_from(["path", "limit", "format", "name", "options", "0", "sources", "if"])
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)


def paths_of(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths_of(item, (*path, key))


def without_none(value):
    """TOML has no null: such a key or entry is left out."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value if item is not None] if isinstance(value, list) else value


@st.composite
def damaged(draw):
    """The full configuration with some of its values replaced, keys renamed or added, and parts taken out."""
    tree = json.loads(json.dumps(FULL))
    for _ in range(draw(st.integers(1, 5))):
        *inner, last = draw(st.sampled_from(sorted(paths_of(tree), key=repr)))
        holder = tree
        for key in inner:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "rename", "add"])):
            case "replace":
                holder[last] = draw(anything)
            case "remove":
                del holder[last]
            case "rename" if isinstance(holder, dict):
                holder[draw(words)] = holder.pop(last)
            case _ if isinstance(holder, dict):
                holder[draw(words)] = draw(anything)
        tree = without_none(tree)
        if not tree:
            break
    return tree


def read_or_refuse(path: Path, plugins, overrides=()):
    """What is read, or the lines of the refusal, each checked to be one that a person can follow."""
    try:
        return read_run(path, plugins=plugins, overrides=overrides)
    except ConfigError as error:
        lines = error.lines
    assert lines
    assert len(set(lines)) == len(lines)
    last = max(1, len(path.read_bytes().split(b"\n")))
    for line in lines:
        assert line.isprintable()
        if not line.startswith("--set "):
            place = PLACE.fullmatch(line)
            assert place, line
            assert place["line"] is None or 1 <= int(place["line"]) <= last
    return None


@same_folder
@given(tree=damaged())
def test_a_damaged_configuration_is_read_or_refused_in_lines_that_exist(tree, tmp_path, plugins):
    """Nothing but a ConfigError is ever raised, and each of its lines names one of the file."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    runs = read_or_refuse(path, plugins)
    for config in runs.configs if runs else ():
        assert from_plain(json.loads(json.dumps(to_plain(config), allow_nan=False)), plugins) == config


@same_folder
@given(text=st.text(st.sampled_from("ab =.[]{},#\"'\\\n\r\t10-:_eé\0\ufeff"), max_size=60))
def test_any_text_is_read_or_refused(text, tmp_path, plugins):
    """However broken the TOML."""
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_or_refuse(path, plugins) is None


@same_folder
@given(content=st.binary(max_size=60))
def test_any_bytes_are_refused(content, tmp_path, plugins):
    """No file of noise is a configuration."""
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    assert read_or_refuse(path, plugins) is None


@same_folder
@given(
    key=st.sampled_from([".".join(map(str, path)) for path in paths_of(FULL)]) | st.text(max_size=10),
    value=st.sampled_from(["1", "'x'", "[]", "{}", "true", "nan", "x", "", "{a=1}", "[1]\nb=2", "'~'"])
    | st.text(max_size=8),
)
def test_any_override_is_taken_or_refused(key, value, tmp_path, plugins):
    """For any text after `--set`."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(FULL), encoding="utf-8")
    read_or_refuse(path, plugins, overrides=[f"{key}={value}"])


def test_a_full_configuration_survives_json_and_toml(tmp_path, plugins):
    """What a worker reads of the run's folder is what the runner had, and what `config show` prints is a run.toml."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(FULL), encoding="utf-8")
    configs = read_run(path, plugins=plugins).configs
    assert [config.name for config in configs] == ["tiny-a", "tiny-b"]
    (tmp_path / "elsewhere").mkdir()
    for config in configs:
        values = to_plain(config)
        assert from_plain(json.loads(json.dumps(values, allow_nan=False)), plugins) == config
        shown = tmp_path / "elsewhere" / "run.toml"
        shown.write_text(tomli_w.dumps(values), encoding="utf-8")
        assert read_run(shown, plugins=plugins).configs == (config,)


def test_a_resolved_configuration_has_toml_names_absolute_paths_and_no_nulls(tmp_path, plugins):
    """As other tools read it from the run's folder."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(FULL), encoding="utf-8")
    values = to_plain(read_run(path, plugins=plugins).configs[0])
    assert values["registry"]["promote"] == {"alias": "best", "if": "one.exact_match > 0"}
    assert values["registry"]["url"] == f"sqlite:///{tmp_path}/m.db"
    assert values["data"]["sources"][0]["path"] == f"{tmp_path}/a*.jsonl"
    assert values["evaluate"][0]["options"] == {"question": "q", "answer": "answer"}
    assert "adapter" not in values
    assert "max_steps" not in values["train"]
    assert "null" not in json.dumps(values)


def test_a_resolved_configuration_that_lost_its_component_is_refused(tmp_path, plugins):
    """A worker without the plugin says so."""
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(FULL), encoding="utf-8")
    values = to_plain(read_run(path, plugins=plugins).configs[0])
    values["data"]["format"] = "gone"
    with pytest.raises(ConfigError, match=r"resolved configuration data.format: there is no format 'gone'"):
        from_plain(values, plugins)
