"""YAML files: the same keys, the same errors and lines, and nothing that only YAML could do to a reader."""

from __future__ import annotations

import json
import string

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelwright.core.config import ConfigError, read_run, to_plain
from modelwright.core.config.yaml_files import lines, parse

RUN = """\
name: tiny
model:
  scratch: {hidden_size: 32}
data:
  format: qa
  sources:
    - path: train.jsonl
    - path: more.jsonl
      limit: 3
train:
  max_steps: 10
  learning_rate: 2e-5
registry:
  tags: {answer: no, since: 2020-01-01}
"""


@pytest.fixture
def yaml(read_one):
    return lambda text, *overrides: read_one(text, *overrides, name="run.yaml")


@pytest.fixture
def wrong(mistakes):
    return lambda text, *overrides: mistakes(text, *overrides, name="run.yaml")


def test_a_yaml_file_is_a_toml_file_in_other_words(yaml, read_one):
    """`no` is a string, `2e-5` a number, a date a string; `--set` stays TOML."""
    config = yaml(RUN, "seed=3", "data.sources.0.path='x.jsonl'")
    assert config.train.learning_rate == 2e-5
    assert config.registry.tags == {"answer": "no", "since": "2020-01-01"}
    toml = tomli_w.dumps(parse(RUN))
    assert config == read_one(toml, "seed=3", "data.sources.0.path='x.jsonl'")


@pytest.mark.parametrize("name", ["run.yaml", "run.yml", "RUN.YAML"])
def test_the_suffix_says_so(read, name):
    """Any other is TOML."""
    assert read(RUN, name=name).configs[0].name == "tiny"


def test_ten_mistakes_get_the_lines_that_toml_gets(wrong):
    """File, line, table, key, and what is meant."""
    text = """\
name: Tiny Model
seed: 1.5
model:
  scratch: {hidden_size: 30}
data:
  format: qua
  sources:
  - limit: 0
    path: train.jsonl
  quality:
    deduplicate: exakt
train:
  max_steps: 10
  lerning_rate: 1e-3
  compile: yes
  max_length: 128
evaluate:
- name: test
  path: test.jsonl
  metrics:
  - exact_mtch
"""
    assert wrong(text, "train.compile=3") == [
        "run.yaml:1 name",
        "run.yaml:2 seed",
        "run.yaml:4 [model.scratch] heads",
        "run.yaml:6 [data] format",
        "run.yaml:8 [data.sources.0] limit",
        "run.yaml:11 [data.quality] deduplicate",
        "run.yaml:14 [train] lerning_rate",
        "run.yaml:16 [train] max_length",
        "run.yaml:21 [evaluate.0] metrics.0",
        "--set train.compile",
    ]


def test_keys_and_entries_have_the_line_where_they_stand():
    """In block and in flow style, over comments and blank lines, and with any line ends."""
    text = """\
a: 1

# comment
b:
  c: {d: 1,
    e: [1,
  2]}
  f:
  - 1
  -
    g: 2
  - - 3
"h i": |
  x

  y
j: 4
"""
    expected = {
        ("a",): 1, ("b",): 4, ("b", "c"): 5, ("b", "c", "d"): 5, ("b", "c", "e"): 6, ("b", "c", "e", 1): 7,
        ("b", "f"): 8, ("b", "f", 0): 9, ("b", "f", 1): 11, ("b", "f", 1, "g"): 11, ("b", "f", 2, 0): 12, ("h i",): 13,
        ("j",): 17,
    }  # fmt: skip
    for ends in ("\n", "\r\n"):
        found = lines(text.replace("\n", ends))
        assert {path: found.get(path) for path in expected} == expected
    # Characters that YAML 1.1 took for line ends are none to an editor.
    assert lines("a: x\x85y\u2028z\nb: 1\n")["b",] == 2


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"), ("Yes", "Yes"), ("on", "on"), ("true", True), ("FALSE", False), ("~", None), ("null", None),
        ("", None), ("12", 12), ("012", 12), ("0o14", 12), ("0x1F", 31), ("+1", 1), ("1_000", "1_000"),
        ("12:30", "12:30"), ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("2e-5", 2e-5), ("1.5E+2", 150.0),
        (".inf", float("inf")),
        ("-.INF", -float("inf")),
        ("0b11", "0b11"), ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("2020-01-01", "2020-01-01"),
        ("2020-01-01T10:00:00Z", "2020-01-01T10:00:00Z"), ('"\\u00e9"', "é"), (">-\n  a\n  b", "a b"), ("=", "="),
    ],
)  # fmt: skip
def test_a_plain_word_means_what_yaml_1_2_says(written, value):
    """The core schema, without the surprises of 1.1, even if a directive asks for it."""
    for head in ("", "%YAML 1.1\n---\n"):
        found = parse(f"{head}key: {written}\n")["key"]
        assert (found, type(found)) == (value, type(value))


def test_null_takes_a_key_back(write, yaml, wrong):
    """Where the key has no value by default; anywhere else it is a value of the wrong kind."""
    write(RUN, "base.yaml")
    config = yaml("extends: base.yaml\ntrain: {max_steps: null, epochs: 1}\n")
    assert (config.train.max_steps, config.train.epochs) == (None, 1)
    assert wrong(RUN + "seed: ~\n") == ["run.yaml:15 seed"]
    assert wrong(RUN + "evaluate:\n") == ["run.yaml:15 evaluate"]


def test_anchors_and_merge_keys_work(yaml, wrong):
    """An error in a shared value names the line where the value is written."""
    shared = "x: &suite {format: qa, metrics: [exact_match], limit: %s}\n"
    suites = (
        "evaluate:\n- {<<: *suite, name: a, path: a.jsonl}\n- <<: [*suite]\n  name: b\n  path: b.jsonl\n  limit: 9\n"
    )
    anchored = RUN.replace("{answer: no, since: 2020-01-01}", "&t {answer: no}")
    config = yaml(anchored + "cluster: {sbatch: *t}\n")
    assert config.cluster.sbatch == {"answer": "no"}
    inline = suites.replace("- {<<: *suite, ", "- &suite {format: qa, metrics: [exact_match], limit: 5, ")
    assert [(suite.name, suite.limit) for suite in yaml(RUN + inline).evaluate] == [("a", 5), ("b", 9)]
    places = wrong(RUN + shared % 0 + suites)
    assert places[0] == "run.yaml:15 x"
    assert "run.yaml:15 [evaluate.0] limit" in places


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\na: 2\n", "2:1"),
        ("a: {b: 1, b: 2}\n", "1:11"),
        ('a: 1\n"a": 2\n', "2:1"),
        ("a:\n\t- b\n", "2:1"),
        ("a: b: c\n", "1:5"),
        ("a: [1, 2\n", "2:1"),
        ('a: "x\n', "2:1"),
        ("name: tiny\n---\nname: other\n", "2:1"),
        ("a: 1\n...\nb: 1\n", "3:1"),
        ("a: !!python/object/apply:os.system [ls]\n", "1:4"),
        ("a: !!int 3\n", "1:4"),
        ("a: !mine {}\n", "1:4"),
        ("1: x\n", "1:1"),
        ("true: x\n", "1:1"),
        ("~: x\n", "1:1"),
        ("? [a, b]\n: x\n", "1:3"),
        ("- a\n- b\n", "1"),
        ("just words\n", "1"),
        pytest.param("", "1", id="empty"),
        ("# nothing\n---\n", "1"),
        ("a: *b\n", "1:4"),
        ("a: &b [*b]\n", "1:4"),
        ("a: &b {<<: *b}\n", "1:4"),
        ("a: {<<: &b {<<: *b}}\n", "1:9"),
        ("<<: 3\n", "1:1"),
        ('a: "\\ud800"\n', "1:4"),
        ("a: x\0y\n", "1"),
        ("\n\na: \x1b\n", "3"),
        pytest.param("a: " + "9" * 5000, "1:4", id="a number of 5000 digits"),
        pytest.param("a: " + "[" * 9999, "1:68", id="nested deeply"),
        ("%YAML 9.9\n---\na: 1\n", "1:1"),
    ],
)
def test_a_file_without_a_configuration_gets_one_line(wrong, text, place):
    """With line and column where there are any; a tab gets advice."""
    assert wrong(text) == [f"run.yaml:{place}"]


def test_numbers_that_are_none_are_refused_at_their_keys(wrong):
    """As in TOML."""
    text = RUN.replace("2e-5", ".nan").replace("10", "99999999999999999999")
    assert wrong(text) == [
        "run.yaml:11 [train] max_steps",
        "run.yaml:12 [train] learning_rate",
    ]


def test_aliases_cannot_blow_up(wrong):
    """Ten names for ten names for ten…: refused where it becomes too many, at once."""
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for number in range(1, 40):
        text += f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]\n"
    (found,) = wrong(text)
    assert found == "run.yaml:5:5"
    deep = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 80))
    assert wrong(deep) == ["run.yaml:64:6"]
    merged = "a0: &a0 {x: 1}\n"
    merged += "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 40))
    assert parse(merged)["a39"] == {"x": 1}


keys = st.text(string.ascii_letters + string.digits + "_-. \"'\\é#=[]{}:,&*!|>%@\n", max_size=6)
numbers = st.integers(-99, 99) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(numbers, st.booleans(), st.text(max_size=8), st.none())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


def paths_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_of(item, (*path, key))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, values, min_size=1, max_size=4), st.sampled_from([None, 1]))
def test_any_json_is_yaml_and_every_path_of_it_has_a_line(document, indent):
    """YAML 1.2 holds all of JSON: the values are JSON's own, and each key is on its line."""
    text = json.dumps(document, indent=indent)
    assert parse(text) == json.loads(text)
    found, text_lines = lines(text), text.split("\n")
    for path in paths_of(document):
        assert path in found, (path, text)
        if path and isinstance(path[-1], str):
            assert json.dumps(path[-1]) in text_lines[found[path] - 1]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("ab -:,[]{}#&*!|>'\"%@`?\\\n\r\t10.~<é\0\ufeff\x85"), max_size=60))
def test_any_text_is_read_or_refused(tmp_path, plugins, text):
    """Nothing but a ConfigError, whose lines are those of the file."""
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ConfigError) as caught:
        read_run(path, plugins=plugins)
    for problem in caught.value.problems:
        assert str(problem).isprintable()
        assert problem.line is None or 1 <= problem.line <= text.count("\n") + 1


def test_what_it_comes_to_is_what_toml_comes_to(yaml, read_one):
    """Nothing of the syntax is left in the configuration."""
    assert to_plain(yaml(RUN)) == to_plain(read_one(tomli_w.dumps(parse(RUN))))
