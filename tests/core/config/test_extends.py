"""`extends`: files over files, and where what is wrong in them was written."""

from __future__ import annotations

import pytest

from modelwright.core.config import ConfigError, read_run, to_plain

BASE = """\
name = "base"
[model.scratch]
layers = 1
[data]
format = "qa"
[[data.sources]]
path = "train.jsonl"
[train]
max_steps = 10
learning_rate = 1e-3
"""


@pytest.fixture
def over(write, read_one):
    """Reads a text over files of other names."""

    def over(text: str, *overrides: str, name: str = "run.toml", **files: str):
        for stem, content in files.items():
            write(content, stem.replace("__", "/").replace("_", "."))
        return read_one(text, *overrides, name=name)

    return over


def test_a_file_extends_another(over):
    """Tables merge, and arrays and single values are replaced; `--set` is over all."""
    config = over('extends = "base.toml"\nname = "mine"\ntrain.max_steps = 20\n', "seed=3", base_toml=BASE)
    assert (config.name, config.seed, config.train.max_steps, config.train.learning_rate) == ("mine", 3, 20, 1e-3)
    assert config.model.scratch.layers == 1
    config = over('extends = "base.toml"\ndata.sources = [{ path = "a" }, { path = "b" }]\n')
    assert [source.path.rpartition("/")[2] for source in config.data.sources] == ["a", "b"]


def test_several_files_later_ones_over_earlier(over):
    """And this file over them all."""
    more = {"base_toml": BASE, "one_toml": "seed = 1\ntrain.batch_size = 1\n", "two_toml": "seed = 2\n"}
    config = over('extends = ["base.toml", "one.toml", "two.toml"]\n', **more)
    assert (config.seed, config.train.batch_size) == (2, 1)
    assert over('extends = ["base.toml", "two.toml", "one.toml"]\n').seed == 1
    assert over('extends = ["base.toml", "two.toml"]\nseed = 9\n').seed == 9
    assert over("extends = []\n" + BASE).name == "base"


def test_a_file_that_is_reached_twice_counts_where_it_is_reached_first(over):
    """What two files have in common does not undo what the first of them says."""
    on_base = 'extends = "base.toml"\n'
    files = {"base_toml": BASE, "left_toml": on_base + "seed = 1\n", "right_toml": on_base}
    assert over('extends = ["left.toml", "right.toml"]\n', **files).seed == 1
    assert over('extends = ["base.toml", "./base.toml"]\n').name == "base"


def test_toml_and_yaml_extend_one_another_in_chains(over):
    """With any of the suffixes."""
    middle = "extends: base.toml\nseed: 5\ntrain: {batch_size: 7}\n"
    config = over('extends = "middle.yaml"\n', base_toml=BASE, middle_yaml=middle)
    assert (config.name, config.seed, config.train.batch_size) == ("base", 5, 7)
    assert over("extends: [middle.yaml]\nname: mine\n", name="run.yml").name == "mine"


def test_paths_resolve_against_the_file_that_they_stand_in(over, tmp_path, monkeypatch):
    """A base in another folder keeps its data; `~` is the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    suite = '[[evaluate]]\nname = "t"\npath = "test.jsonl"\nmetrics = ["exact_match"]\n'
    config = over('extends = "shared/base.toml"\n' + suite, shared__base_toml=BASE)
    assert config.data.sources[0].path == f"{tmp_path}/shared/train.jsonl"
    assert config.evaluate[0].path == f"{tmp_path}/test.jsonl"
    assert over('extends = "~/shared/base.toml"\n').name == "base"
    assert over(f'extends = "{tmp_path}/shared/base.toml"\n').name == "base"


def test_variants_of_the_base_are_merged_too(write, read):
    """A variant of either file is a variant; one of both is merged, and overrides the file's own keys."""
    write(BASE + "[variants.a]\ntrain = { max_steps = 1 }\n[variants.b]\nseed = 2\n", "base.toml")
    runs = read(
        'extends = "base.toml"\nname = "x"\ntrain.max_steps = 99\n[variants.b]\ntrain.max_steps = 7\n[variants.c]\n'
    )
    assert [(one.name, one.seed, one.train.max_steps) for one in runs.configs] == [
        ("x-a", 17, 1),
        ("x-b", 2, 7),
        ("x-c", 17, 99),
    ]
    assert [one.name for one in read('extends = "base.toml"\n', variants=["b"]).configs] == ["base-b"]


def test_plugins_of_the_base_count(over):
    """They are settled before anything is looked up."""
    config = over('extends = "base.toml"\nplugins.disable = ["b"]\n', base_toml=BASE + '[plugins]\ndisable = ["a"]\n')
    assert config.plugins.disable == ("b",)


def test_what_it_comes_to_says_nothing_of_the_files(over, write, plugins):
    """So that a fingerprint depends on the values alone."""
    extended = to_plain(over('extends = "base.toml"\nseed = 3\n', base_toml=BASE))
    assert extended == to_plain(read_run(write("seed = 3\n" + BASE, "whole.toml"), plugins=plugins).configs[0])
    assert "extends" not in extended


# What is wrong


@pytest.fixture
def wrong(write, mistakes):
    def wrong(text: str, *overrides: str, name: str = "run.toml", **files: str) -> list[str]:
        for stem, content in files.items():
            write(content, stem.replace("__", "/").replace("_", "."))
        return mistakes(text, *overrides, name=name)

    return wrong


def test_a_mistake_is_reported_where_it_was_written(wrong):
    """The file's own first, then those of what it extends; a merged table's missing key in the file that was read."""
    base = BASE.replace("max_steps = 10", "max_steps = 0\nlerning_rate = 1").replace('format = "qa"', 'format = "qua"')
    assert wrong('extends = "base.toml"\nseed = "x"\n', base_toml=base) == [
        "run.toml:2 seed",
        "base.toml:5 [data] format",
        "base.toml:9 [train] max_steps",
        "base.toml:10 [train] lerning_rate",
    ]
    lacking = BASE.replace('format = "qa"\n', "")
    assert wrong('extends = "base.toml"\n', base_toml=lacking) == ["base.toml:4 [data] format"]
    assert wrong('extends = "base.toml"\n[data]\n') == ["run.toml:2 [data] format"]
    assert wrong('extends = "base.toml"\n', base_toml="seed = 1\n")[0] == "run.toml:1 name"


def test_a_replaced_value_is_reported_where_it_was_given_last(wrong):
    """And one that a file over it corrects is not reported."""
    assert wrong('extends = "base.toml"\n[train]\nmax_steps = -1\n', base_toml=BASE) == ["run.toml:3 [train] max_steps"]
    assert wrong('extends = "base.toml"\n[train]\nepochs = 1\n') == ["base.toml:9 [train] max_steps"]


def test_variants_of_a_base_are_reported_there(wrong):
    """With the base's name and line."""
    base = BASE + "[variants.a]\nseed = -1\nname = 'x'\n[variants.Bad]\n"
    assert wrong('extends = "base.toml"\n[variants.b]\nextends = "x"\n', base_toml=base) == [
        "run.toml:3 [variants.b] extends",
        "base.toml:12 [variants.a] seed",
        "base.toml:13 [variants.a] name",
        "base.toml:14 [variants] Bad",
    ]


@pytest.mark.parametrize(
    ("extends", "place"),
    [
        ("3", "run.toml:2 extends"),
        ("{}", "run.toml:2 extends"),
        ('["base.toml", 3]', "run.toml:2 extends.1"),
        ('""', "run.toml:2 extends"),
        ('"nowhere.toml"', "run.toml:2 extends"),
        ('"https://x.org/a.toml"', "run.toml:2 extends"),
        ('"~nobody-of-that-name/a"', "run.toml:2 extends"),
        ('"run.toml"', "run.toml:2 extends"),
        ('"../{name}/run.toml"', "run.toml:2 extends"),
        ('"circle.toml"', "circle.toml:1 extends"),
        ('"broken.toml"', "broken.toml:1:8"),
        ('"empty.yaml"', "empty.yaml:1"),
        ('"elsewhere"', "run.toml:2 extends"),
        ('"long/0.toml"', "long/14.toml:1 extends"),
    ],
)
def test_an_extends_that_leads_nowhere(read, write, tmp_path, wording, extends, place):
    """One clear line, with the file and the line of the `extends`."""
    write("seed = 1\n", "base.toml")
    write('extends = "run.toml"\n', "circle.toml")
    write("seed = \n", "broken.toml")
    write("# nothing\n", "empty.yaml")
    for number in range(20):
        write(f'extends = "{number + 1}.toml"\n', f"long/{number}.toml")
    written = extends.replace("{name}", tmp_path.name)
    with pytest.raises(ConfigError) as caught:
        read(f"\nextends = {written}\n{BASE}")
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{tmp_path}/{place}: ")
    wording(problem, name=tmp_path.name)


def test_everything_that_cannot_be_read_is_reported_at_once(wrong):
    """Each file's own line."""
    found = wrong('extends = ["a.toml", "b.yaml", 3]\n' + BASE, a_toml="x = ", b_yaml="x: [")
    assert [line.partition(":")[0] for line in found] == ["a.toml", "b.yaml", "run.toml"]


def test_a_link_to_the_file_itself_is_a_circle(wrong, tmp_path):
    """Under any name."""
    (tmp_path / "other.toml").symlink_to("run.toml")
    assert wrong('extends = "other.toml"\n' + BASE) == ["run.toml:1 extends"]


def test_many_files_that_extend_each_other_are_read_once(over):
    """Each of 15 storeys names both files of the one below."""
    files = {"s0a_toml": BASE, "s0b_toml": "seed = 1\n"}
    for number in range(1, 14):
        text = f'extends = ["s{number - 1}a.toml", "s{number - 1}b.toml"]\n'
        files |= {f"s{number}a_toml": text, f"s{number}b_toml": text}
    assert over('extends = ["s13a.toml", "s13b.toml"]\n', **files).seed == 1
