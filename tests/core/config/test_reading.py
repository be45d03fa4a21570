"""The configuration of a valid run file: defaults, layers, variants, options."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import tomli
from attrs import fields, has, resolve_types

from modelwright.core.api import NoOptions
from modelwright.core.config import ConfigError, RunConfig, read_run

EXAMPLE = Path(__file__).parents[4] / "shared" / "run.example.toml"

needs_example = pytest.mark.skipif(not EXAMPLE.exists(), reason=f"{EXAMPLE} is not there")


def test_only_name_model_data_and_train_are_needed(read_one, minimal):
    """Everything else has a default, and the defaults are those of the annotated example."""
    config = read_one(minimal)
    assert (config.name, config.seed, config.evaluate, config.adapter) == ("tiny", 17, (), None)
    assert (config.model.scratch.hidden_size, config.model.scratch.tokenizer) == (64, "words")
    assert (config.data.quality.deduplicate, config.data.tokens.max_length) == ("exact", 2048)
    assert (config.train.trainer, config.train.learning_rate, config.train.processes) == ("local", 1e-4, 1)


def test_an_integer_is_a_number_but_becomes_a_float(read_one, minimal):
    """`learning_rate = 1` is fine and typed as its field says."""
    rate = read_one(minimal + "learning_rate = 1\n").train.learning_rate
    assert rate == 1.0
    assert isinstance(rate, float)


def test_processes_are_a_number_or_auto(read_one, mistakes, minimal):
    """A union of a number and a word takes either; a trainer of one process says so."""
    assert read_one(minimal + "processes = 1").train.processes == 1
    assert read_one(minimal + 'processes = "auto"').train.processes == "auto"
    assert mistakes(minimal + "processes = 3") == ["run.toml:9 [train] processes"]


def test_an_unknown_key_hides_no_mistake_between_the_others(mistakes, minimal):
    """Both are reported at once."""
    assert "max_steps" in minimal
    assert mistakes(minimal + "epochs = 2\nlerning_rate = 1.0\n") == [
        "run.toml:8 [train] max_steps",
        "run.toml:10 [train] lerning_rate",
    ]


def test_a_promotion_asks_for_what_the_run_measures(mistakes, minimal):
    """A misspelt metric would never promote anything."""
    promote = "[registry]\npromote = {{ alias = 'a', if = '{}' }}\n"
    for condition in ("s.m > 0", "s.m >> 0"):
        assert mistakes(minimal + promote.format(condition)) == ["run.toml:10 [registry.promote] if"]


def test_false_is_one_of_the_ways_to_deduplicate(read_one, minimal):
    """A choice may mix words and false."""
    assert read_one(minimal + "[data.quality]\ndeduplicate = false").data.quality.deduplicate is False


def test_variants_are_merged_over_the_file_and_named_after_both(read, minimal):
    """Tables merge, arrays replace, and every variant is read unless some are named."""
    text = (
        minimal
        + """
        [variants.short]
        train.max_steps = 2
        [variants.boxed]
        data = { options = { style = "boxed" }, sources = [{ path = "a.jsonl" }, { path = "b.jsonl" }] }
        """.replace("\n        ", "\n")
    )
    runs = read(text)
    short, boxed = runs.configs
    assert [one.name for one in runs.configs] == ["tiny-short", "tiny-boxed"]
    assert (short.train.max_steps, short.data.options.style, len(short.data.sources)) == (2, "plain", 1)
    assert (boxed.train.max_steps, boxed.data.options.style, len(boxed.data.sources)) == (10, "boxed", 2)
    assert [one.name for one in read(text, variants=["boxed"]).configs] == ["tiny-boxed"]
    assert [one.name for one in read(text, variants=["boxed", "short", "boxed"]).configs] == [
        "tiny-boxed",
        "tiny-short",
    ]
    assert len(read(text, variants=[]).configs) == 2


@pytest.fixture
def of_base(minimal):
    return minimal.replace("[model.scratch]", '[model]\nbase = "someone/base"')


def test_a_variant_may_leave_the_base_untrained(read, of_base):
    """`--set` below [train] is for the variants that train."""
    text = of_base + "[variants.base]\ntrain = false\n[variants.tuned]\n"
    base, tuned = read(text, "train.max_steps=3").configs
    assert base.train is False
    assert tuned.train.max_steps == 3


@pytest.mark.parametrize(
    ("adapter", "train", "place"), [("", "false", "train"), ("[adapter]", "false", "adapter"), ("", "true", "train")]
)
def test_an_untrained_run_has_a_base_and_no_adapter(mistakes, minimal, of_base, adapter, train, place):
    """A model from scratch or an adapter would be nothing without training; and `true` does not say how to train."""
    text = (of_base if adapter else minimal) + f"{adapter}\n[variants.base]\ntrain = {train}\n"
    [found] = mistakes(text)
    assert found.split()[-1] == place


@pytest.mark.parametrize("without", ["[adapter]", "", "train = false"], ids=["an adapter", "a base", "training"])
def test_rotary_positions_are_stretched_where_all_weights_are_trained(mistakes, minimal, of_base, without):
    """An adapter's base, and a base that is not trained, stay as they are; a new model has nothing to stretch."""
    text = (of_base if without else minimal) + "[model.rope_scaling]\nrope_type = 'yarn'\nfactor = 2\n"
    text += f"[variants.one]\n{without}\n" if "train" in without else f"{without}\n"
    [found] = mistakes(text)
    assert found.split()[-1] in ("rope_scaling", "model.rope_scaling")


def test_set_is_over_the_variants(read, minimal):
    """The command line has the last word in every variant."""
    runs = read(minimal + "[variants.a]\ntrain.max_steps = 2\n[variants.b]\n", "train.max_steps=3", 'name="new"')
    assert [(one.name, one.train.max_steps) for one in runs.configs] == [("new-a", 3), ("new-b", 3)]


@pytest.mark.parametrize(
    ("override", "look", "expected"),
    [
        ("train.max_steps = 5", lambda c: c.train.max_steps, 5),
        ("train={max_steps=5}", lambda c: (c.train.max_steps, c.train.batch_size), (5, 32)),
        ("data.sources.0.limit=7", lambda c: [s.limit for s in c.data.sources], [7]),
        ("data.sources.0={limit=7}", lambda c: [s.limit for s in c.data.sources], [7]),
        ("data.sources=[{path='/x'},{path='/y'}]", lambda c: [s.path for s in c.data.sources], ["/x", "/y"]),
        (
            'plugins.prefer."metric.exact_match"="hand-made"',
            lambda c: c.plugins.prefer,
            {"metric.exact_match": "hand-made"},
        ),
        ("registry.tags.'a=b'=\"c=d\"", lambda c: c.registry.tags, {"a=b": "c=d"}),
        ('registry.promote={alias="best"}', lambda c: c.registry.promote.alias, "best"),
        ('registry.tags."0"="x"', lambda c: c.registry.tags, {"0": "x"}),
    ],
)
def test_set_reaches_every_key(read_one, minimal, override, look, expected):
    """K is a dotted path with quoted parts and indices, V is TOML; tables merge, arrays replace."""
    assert look(read_one(minimal, override)) == expected


def test_later_sets_win(read_one, minimal):
    """Overrides are put on in the order in which they were typed."""
    assert read_one(minimal, "seed=1", "seed=2").seed == 2


def test_options_are_instances_of_the_components_own_classes(read_one, minimal):
    """A name leads to a descriptor, the descriptor to its options class, and an absent table to its defaults."""
    config = read_one(minimal + 'trainer = "sgd"\n[data.options]\ninstruction = "Think."')
    assert (config.data.options.instruction, config.data.options.style) == ("Think.", "plain")
    assert config.train.options.momentum == 0.9
    assert read_one(minimal).train.options == NoOptions()


def test_a_suite_takes_the_datas_format_and_options_unless_it_names_others(read_one, minimal):
    """Stages find a format and typed options in every suite."""
    suite = '[[evaluate]]\nname = "{}"\npath = "t.jsonl"\nmetrics = ["exact_match"]\n{}\n'
    config = read_one(
        minimal + '[data.options]\nstyle = "boxed"\n'
        + suite.format("same", "")
        + suite.format("named", 'format = "qa"')
        + suite.format("own", 'options = { instruction = "Answer." }')
        + suite.format("other", 'format = "table"\noptions = { question = "q" }')
        + suite.format("bare", 'format = "bare"')
    )  # fmt: skip
    same, named, own, other, bare = config.evaluate
    assert (same.format, same.options) == ("qa", config.data.options)
    assert named.options == config.data.options
    assert (own.format, own.options.instruction, own.options.style) == ("qa", "Answer.", "plain")
    assert (other.format, other.options.question) == ("table", "q")
    assert bare.options == NoOptions()


def test_a_third_partys_components_are_found_and_plugins_can_be_disabled(install_plugin, write, minimal):
    """Without plugins of the caller's, those installed are used, less what `[plugins]` disables."""
    install_plugin(
        "modelwright-trivia",
        """
        from modelwright import FormatSpec, TrainerSpec, hookimpl

        @hookimpl
        def modelwright_formats():
            yield FormatSpec(name="trivia", summary="trivia", factory="nowhere:Trivia")

        @hookimpl
        def modelwright_trainers():
            yield TrainerSpec(name="guess", summary="guessing", factory="nowhere:Guess")
        """,
    )
    text = minimal.replace('"qa"', '"trivia"') + 'trainer = "guess"\n'
    runs = read_run(write(text))
    assert runs.configs[0].data.format == "trivia"
    assert "trivia" in runs.plugins.names("format")
    for table, overrides in (
        ('[plugins]\ndisable = ["modelwright-trivia"]', []),
        ("", ['plugins.disable=["modelwright-trivia"]']),
    ):
        with pytest.raises(ConfigError, match=r"there is no format 'trivia'.*disabled plugin: 'modelwright_trivia'"):
            read_run(write(text + table), overrides=overrides)


def test_a_wrong_plugins_table_loads_no_plugin(install_plugin, write, minimal, tmp_path):
    """It is unknown which plugin was to be disabled, so none is imported."""
    install_plugin("modelwright-loud", f"open({str(tmp_path / 'was-imported')!r}, 'w')")
    with pytest.raises(
        ConfigError, match=r"run.toml:10 \[plugins\] disable: must be an array, not \"modelwright-loud\""
    ):
        read_run(write(minimal + '[plugins]\ndisable = "modelwright-loud"'))
    assert not (tmp_path / "was-imported").exists()


def test_reading_takes_less_than_fifty_milliseconds(write, plugins, minimal):
    """Once imported, an ordinary file with three variants is read in no time that anyone notices."""
    text = minimal + "".join(f"[variants.v{number}]\ntrain.max_steps = {number + 1}\n" for number in range(3))
    path = write(text)
    read_run(path, plugins=plugins)
    best = min(_seconds(lambda: read_run(path, plugins=plugins)) for _ in range(5))
    assert best < 0.05


def _seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _example() -> dict:
    """The annotated example with its commented keys: `# key = value` and `# [table]`, not the sentences."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    keys = (re.sub(r"^# (?=\[[a-z.]+\]|[a-z_]+ = )", "", line) for line in lines)
    return tomli.loads("\n".join(keys))


def _unknown(table: dict, cls: type, path: str = ""):
    """The keys in a tree that the schema has not got."""
    known = {one.metadata.get("key", one.name): one for one in fields(resolve_types(cls))}
    for key, value in table.items():
        if key not in known:
            yield f"{path}{key}"
            continue
        inner = [kind for kind in (known[key].type, *getattr(known[key].type, "__args__", ())) if has_fields(kind)]
        for item in value if isinstance(value, list) else [value]:
            if inner and isinstance(item, dict):
                yield from _unknown(item, inner[0], f"{path}{key}.")


def has_fields(kind) -> bool:
    return isinstance(kind, type) and has(kind)


@needs_example
def test_every_key_of_the_annotated_example_is_known():
    """Commented keys too; `extends` and `variants` are not part of one run."""
    example = _example()
    assert {"adapter", "cluster", "extends", "variants", "registry"} <= example.keys()
    assert "scratch" in example["model"]
    assert list(_unknown(example, RunConfig)) == ["extends", "variants"]


@needs_example
def test_the_annotated_examples_values_are_the_defaults(read_one, minimal):
    """What the example shows where one need not choose is what one gets without it."""
    example = tomli.loads(EXAMPLE.read_text(encoding="utf-8"))
    config = read_one(minimal)
    shown = {
        "": {"seed": example["seed"]},
        "data": {"max_rejected": example["data"]["max_rejected"]},
        **{f"data.{name}": example["data"][name] for name in ("quality", "tokens", "holdout")},
        "train": {key: value for key, value in example["train"].items() if key != "options"},
        "plugins": example["plugins"],
        "registry": example["registry"],
    }
    for path, table in shown.items():
        part = config
        for name in filter(None, path.split(".")):
            part = getattr(part, name)
        for key, value in table.items():
            given = getattr(part, key)
            assert (list(given) if isinstance(given, tuple) else given) == value, f"{path}.{key}"
