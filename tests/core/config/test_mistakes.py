"""What a wrong run.toml gets: a line for each mistake, with file, line, table, key and what is meant."""

from __future__ import annotations

import pickle

import pytest
from attrs import field, frozen, validators

from modelwright.core.api import FormatSpec, MetricSpec, UsageError
from modelwright.core.config import ConfigError
from modelwright.core.plugins import Plugin, Plugins

TEN = """\
name = "Tiny Model"
seed = 1.5
[model.scratch]
hidden_size = 30
[data]
format = "qua"
[[data.sources]]
path = "train.jsonl"
limit = 0
[data.quality]
deduplicate = "exakt"
[train]
max_steps = 10
lerning_rate = 1e-3
compile = "true"
max_length = 128
[[evaluate]]
name = "test"
path = "test.jsonl"
metrics = ["exact_mtch"]
"""


def test_ten_mistakes_get_ten_lines(mistakes):
    """All of them at once, in the order of the file."""
    assert mistakes(TEN) == [
        "run.toml:1 name",
        "run.toml:2 seed",
        "run.toml:3 [model.scratch] heads",
        "run.toml:6 [data] format",
        "run.toml:9 [data.sources.0] limit",
        "run.toml:11 [data.quality] deduplicate",
        "run.toml:14 [train] lerning_rate",
        "run.toml:15 [train] compile",
        "run.toml:16 [train] max_length",
        "run.toml:20 [evaluate.0] metrics.0",
    ]


def test_a_configuration_error_is_a_usage_error_and_survives_a_process_boundary(read):
    """Exit code 2, and its problems can be counted and sent."""
    with pytest.raises(UsageError) as caught:
        read(TEN)
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, ConfigError)
    assert error.exit_code == 2
    assert [problem.line for problem in error.problems] == [1, 2, 3, 6, 9, 11, 14, 15, 16, 20]
    assert str(error) == str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "batch_size = 1.5",
        "batch_size = 1.0",
        "batch_size = true",
        'batch_size = "8"',
        "batch_size = 99999999999999999999",
        "batch_size = [1]",
        "batch_size = {}",
        "batch_size = 2020-01-01",
        "batch_size = -1",
        "learning_rate = true",
        'learning_rate = "1e-3"',
        "learning_rate = nan",
        "learning_rate = inf",
        "learning_rate = 0",
        "warmup = 1.25",
        "compile = 1",
        "trainer = 3",
        'schedule = "cosin"',
        "schedule = false",
        "processes = 1.5",
        'processes = "atuo"',
        "processes = true",
        "processes = -3",
        "epochs = 1",
        "options = 3",
        "options = { x = 1 }",
        "Batch-Size = 1",
        '"a\\u0085b" = 1',
        'trainer = "a\\nb"',
    ],
)
def test_a_wrong_value_gets_a_line(mistakes, minimal, line):
    """The message says what is expected and what was given, on one line."""
    (found,) = mistakes(minimal + line)
    assert found.startswith("run.toml:8 [train] max_steps" if "epochs" in line else "run.toml:9 [train")


def test_more_passes_than_can_be_counted_are_refused(mistakes, minimal):
    """Their steps would be infinitely many."""
    assert mistakes(minimal.replace("max_steps = 10", "epochs = 1e308")) == ["run.toml:8 [train] epochs"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[adapter]\nrank = 8", "9 adapter"),
        ("[adapter]\ndropout = 1.0", "10 [adapter] dropout"),
        ("[adapter]\ntargets = []", "10 [adapter] targets"),
        ('[adapter]\ntargets = ["q", 1]', "10 [adapter] targets.1"),
        ("[adapter]\ntargets = 1", "10 [adapter] targets"),
        ('[adapter]\ninit = "loftq"', "10 [adapter] init"),
        ("[adapter]\nlora_plus = 0.5", "10 [adapter] lora_plus"),
        ("[adapter]\nlayers = [-1]", "10 [adapter] layers"),
        ('[adapter]\nexclude = [""]', "10 [adapter] exclude"),
        ("[data.quality]\ndecontaminate = true", "10 [data.quality] decontaminate"),
        ("early_stopping = 2", "9 [train] early_stopping"),
        ("[data.quality]\ndeduplicate = 0", "10 [data.quality] deduplicate"),
        ("[registry]\ntags = { a = 1 }", "10 [registry.tags] a"),
        ('[registry]\npromote = { alias = "7" }', "10 [registry.promote] alias"),
        ('[registry]\npromote = { alias = "a", if = " " }', "10 [registry.promote] if"),
        ('[registry]\nurl = "models.db"', "10 [registry] url"),
        ('[registry]\nurl = "redis://x"', "10 [registry] url"),
        ('[plugins.prefer]\n"metrics.x" = "y"', "9 [plugins] prefer"),
        ('extends = "base.toml"', "9 [train] extends"),
    ],
    ids=lambda text: None if text[0].isdigit() else text,
)
def test_tables_beside_train(mistakes, minimal, text, place):
    """Each with the line of the key, or of the table where the key is missing."""
    lines = mistakes(minimal + text)
    if "adapter" not in text or "rank" in text:
        assert lines == [f"run.toml:{place}"]
    else:
        assert f"run.toml:{place}" in lines


@pytest.mark.parametrize(
    ("model", "more", "key"),
    [
        ('dtype = "bfloat16"', "", "model.dtype"),
        ('quantization = "nf4"', "", "model.quantization"),
        ('quantization = "int4"', "[adapter]", "model.quantization"),
        ('dtype = "bfloat16"', 'precision = "float32"\n[adapter]', "model.dtype"),
        ('quantization = "nf4"', "compile = true\n[adapter]", "train.compile"),
        ('quantization = "nf4"', '[adapter]\ninit = "pissa"', "adapter.init"),
        ('quantization = "int8"', "[adapter]\ndora = true", "adapter.dora"),
    ],
    ids=["dtype", "quantized", "int4", "precision", "compile", "pissa", "dora"],
)
def test_frozen_weights_that_a_run_cannot_have(read, minimal, wording, model, more, key):
    """Only weights under an adapter are frozen, and some settings need them as they are."""
    text = minimal.replace("[model.scratch]", f'[model]\nbase = "./x"\n{model}')
    with pytest.raises(ConfigError) as caught:
        read(text + more)
    (line,) = [line for line in str(caught.value).splitlines() if f"[{key.partition('.')[0]}] " in line]
    assert key.partition(".")[2] in line
    wording(line)


def test_an_empty_table_lacks_its_required_keys(mistakes, minimal):
    """All of them, at the table's line; then what needs one of two keys."""
    assert mistakes(minimal + "[[evaluate]]") == [f"run.toml:9 [evaluate.0] {key}" for key in ("name", "metrics")]
    given = 'name = "test"\nmetrics = ["exact_match"]\n'
    assert mistakes(f"{minimal}[[evaluate]]\n{given}") == ["run.toml:9 [evaluate.0] path"]


def test_missing_keys_are_reported_at_their_tables_line(mistakes):
    """A missing key has no line of its own; a missing table has the file's first."""
    assert mistakes("\n[data]\nsources = [{ limit = 3 }]\n") == [
        "run.toml:1 name",
        "run.toml:1 model",
        "run.toml:1 train",
        "run.toml:2 [data] format",
        "run.toml:3 [data.sources.0] path",
    ]
    assert "run.toml:3 [data] sources" in mistakes('name = "a"\n[model]\n[data]\nformat = "qa"\n[train]\n')


def test_model_needs_exactly_one_of_base_and_scratch(mistakes, minimal):
    """Neither and both are wrong."""
    assert mistakes(minimal.replace("[model.scratch]", "[model]")) == ["run.toml:2 [model] base"]
    assert mistakes(minimal, "model.base='./x'") == ["--set model.base"]


def test_two_suites_of_one_name_and_a_metric_named_twice(mistakes, minimal):
    """Both would write over each other in the registry."""
    suite = '[[evaluate]]\nname = "s"\npath = "t"\nmetrics = ["exact_match"]\n'
    assert mistakes(minimal + suite + suite) == ["run.toml:14 [evaluate.1] name"]
    assert mistakes(minimal + suite.replace('"exact_match"', '"exact_match", "exact_match"')) == [
        "run.toml:12 [evaluate.0] metrics.1"
    ]


def test_a_mistake_in_the_file_is_reported_once_for_all_variants(mistakes, minimal):
    """And one in a variant at the variant's own line."""
    text = (
        minimal
        + 'batch_size = 0\n[variants.a]\ndata = { formt = "qa" }\n[variants.b.train]\nschedule = 1\n[variants.c]\n'
    )
    assert mistakes(text) == [
        "run.toml:9 [train] batch_size",
        "run.toml:11 [variants.a.data] formt",
        "run.toml:13 [variants.b.train] schedule",
    ]
    assert mistakes(text, variants=["c"]) == ["run.toml:9 [train] batch_size"]


def test_a_key_missing_from_a_table_that_a_variant_adds_to_is_the_files_mistake(mistakes, minimal):
    """Reported once, at the table's own header; in an array that the variant replaced it is the variant's."""
    text = minimal.replace('format = "qa"\n', "") + "[variants.a]\ndata.max_rejected = 1\n[variants.b]\n"
    assert mistakes(text) == ["run.toml:3 [data] format"]
    assert mistakes(minimal + "[variants.a]\ndata.sources = [\n{ limit = 1 }]\n") == [
        "run.toml:11 [variants.a.data.sources.0] path"
    ]


def test_what_a_variant_cannot_change(mistakes, minimal):
    """Names and plugins belong to the file."""
    text = (
        minimal + '[variants.a]\nname = "x"\nplugins = {}\n[variants.Bad]\n[variants]\nc = 3\n[variants.d.variants.e]\n'
    )
    assert mistakes(text) == [
        "run.toml:10 [variants.a] name",
        "run.toml:11 [variants.a] plugins",
        "run.toml:12 [variants] Bad",
        "run.toml:14 [variants] c",
        "run.toml:15 [variants.d] variants",
    ]
    assert mistakes("variants = 3\n" + minimal) == ["run.toml:1 variants"]


def test_an_unknown_variant_gets_the_names_there_are(mistakes, minimal):
    """With the one that was meant."""
    text = minimal + "[variants.reasoning]\n[variants.math]\n"
    assert mistakes(text, variants=["resoning"]) == ["--variant resoning"]
    assert mistakes(minimal, variants=["math"]) == ["--variant math"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.lr=1", "train.lr"),
        ("train.lerning_rate=1", "train.lerning_rate"),
        ("train.batch_size=0", "train.batch_size"),
        ("train={batch_size=0}", "train.batch_size"),
        ("train=3", "train"),
        ("model.base=x", "model.base"),
        ("model.base=it's", "model.base"),
        ("model.base=", "model.base"),
        ('model.base="x', "model.base"),
        ("seed=1\nname='x'", "seed"),
        ("seed=1\n[x]", "seed"),
        ("seed", '"seed"'),
        ("=1", '"=1"'),
        ("a..b=1", '"a..b=1"'),
        ("a b=1", '"a b=1"'),
        ('"a=1', '"\\"a=1"'),
        pytest.param("", '""', id="empty"),
        ("name.x=1", "name.x"),
        ("data.sources.1.path='x'", "data.sources.1.path"),
        ("data.sources.-1.path='x'", "data.sources.-1.path"),
        ("data.sources.path='x'", "data.sources.path"),
        ("data.sources.99999999999999999999.path='x'", "data.sources.99999999999999999999.path"),
        ("data.sources.0=3", "data.sources.0"),
        ("data.sources.0.x.y=3", "data.sources.0.x"),
        ("data.sources=[]", "data.sources"),
        ("evaluate.0.limit=3", "evaluate.0.limit"),
        ("variants.a.seed=3", "variants.a.seed"),
        ("registry.promote.if='x'", "registry.promote.alias"),
        pytest.param("seed=0x" + "f" * 9999, "seed", id="a large number"),
        pytest.param("seed=" + "[" * 9999, "seed", id="nested deeply"),
        pytest.param(".".join("a" * 200) + "=1", '"' + "a." * 29 + 'a…"', id="many parts"),
        pytest.param("name='\udcff'", "name", id="not UTF-8"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_set(mistakes, minimal, override, key):
    """The key is the one that was typed, and a bare word gets the quotes that it lacks."""
    assert mistakes(minimal, override) == [f"--set {key}"]


def test_mistakes_of_file_and_command_line_come_together(mistakes, minimal):
    """The command line's come last."""
    assert mistakes(minimal + "batch_size = 0", "seed=x", "train.compile=1", "datum=1") == [
        "run.toml:9 [train] batch_size",
        "--set seed",
        "--set datum",
        "--set train.compile",
    ]


def test_an_override_hides_the_mistake_that_it_replaces(read_one, minimal):
    """What is not used is not checked."""
    assert read_one(minimal + "batch_size = 0", "train.batch_size=4").train.batch_size == 4


def test_options_of_components_are_checked_like_any_table(mistakes, minimal):
    """With the line of the key in the options' table."""
    text = minimal + 'trainer = "sgd"\noptions = { momentum = -1 }\n[data.options]\nstyl = "boxed"\nstyle = "box"\n'
    assert mistakes(text) == [
        "run.toml:10 [train.options] momentum",
        "run.toml:12 [data.options] styl",
        "run.toml:13 [data.options] style",
    ]
    suite = '[[evaluate]]\nname = "s"\npath = "t"\nformat = "{}"\nmetrics = ["exact_match"]\n'
    assert mistakes(minimal + suite.format("table") + suite.format("nope")) == [
        "run.toml:9 [evaluate.0.options] question",
        "run.toml:15 [evaluate.1] name",
        "run.toml:17 [evaluate.1] format",
    ]


def test_two_packages_with_one_name_are_named(mistakes, read_one, minimal):
    """The message shows the line that settles it, and that line does."""
    both = Plugins(
        found=tuple(
            Plugin(
                plugin=name,
                distribution=name,
                version="1",
                status="loaded",
                components=(FormatSpec(name="qa", summary="x", factory="nowhere:X"),),
            )
            for name in ("ours", "theirs")
        )
    )
    assert "run.toml:4 [data] format" in mistakes(minimal, plugins=both)


@frozen
class Range:
    low: int = 0
    high: int = field(default=9, validator=validators.lt(100))

    @high.validator
    def _above(self, _attribute, value):
        if value <= self.low:
            raise ValueError(f"must be above low ({self.low}), not {value}")

    def __attrs_post_init__(self):
        if self.low == 13:
            raise RuntimeError("13 is unlucky")


def test_validators_of_a_plugins_class_may_compare_two_fields(mistakes, minimal):
    """As attrs allows; any other error of its constructor is reported at the table."""
    spec = FormatSpec(name="qa", summary="x", options=Range, factory="nowhere:X")
    local = MetricSpec(name="m", summary="x", factory="nowhere:X")
    plugins = Plugins(
        found=(Plugin(plugin="p", distribution="p", version="1", status="loaded", components=(spec, local)),)
    )

    def options(text, *overrides):
        lines = mistakes(f"{minimal}[data.options]\n{text}", *overrides, plugins=plugins)
        return [line for line in lines if "options" in line]

    assert options("low = 5\nhigh = 3") == ["run.toml:11 [data.options] high"]
    assert options('low = "x"\nhigh = 200') == [
        "run.toml:10 [data.options] low",
        "run.toml:11 [data.options] high",
    ]
    assert options("low = 13\nhigh = 20") == ["run.toml:9 [data] options"]
    assert options("high = 20", "data.options.low=13") == ["--set data.options"]
