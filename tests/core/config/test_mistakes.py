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
    unknown = "there is no metric 'exact_mtch', did you mean 'exact_match'?"
    assert mistakes(TEN) == [
        'run.toml:1 name: must be a lower-case letter, then any of a-z 0-9 . _ -, not "Tiny Model"',
        "run.toml:2 seed: must be an integer, not 1.5",
        "run.toml:3 [model.scratch] heads: hidden_size 30 must be a multiple of twice the heads (8)",
        "run.toml:6 [data] format: there is no format 'qua', did you mean 'qa'? (there are: bare, qa, table)",
        "run.toml:9 [data.sources.0] limit: must be > 0, not 0",
        'run.toml:11 [data.quality] deduplicate: must be "exact", "near" or false, not "exakt", did you mean "exact"?',
        "run.toml:14 [train] lerning_rate: unknown key, did you mean learning_rate?",
        'run.toml:15 [train] compile: must be true or false, not "true"',
        "run.toml:16 [train] max_length: unknown key, it belongs in [data.tokens]",
        f"run.toml:20 [evaluate.0] metrics.0: {unknown} (there are: exact_match, math_accuracy)",
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
    ("line", "message"),
    [
        ("batch_size = 1.5", "must be an integer, not 1.5"),
        ("batch_size = 1.0", "must be an integer, not 1"),
        ("batch_size = true", "must be an integer, not true"),
        ('batch_size = "8"', 'must be an integer, not "8"'),
        ("batch_size = 99999999999999999999", "must be an integer of 64 bits, not 99999999999999999999"),
        ("batch_size = [1]", "must be an integer, not an array"),
        ("batch_size = {}", "must be an integer, not a table"),
        ("batch_size = 2020-01-01", "must be an integer, not 2020-01-01"),
        ("batch_size = -1", "must be > 0, not -1"),
        ("learning_rate = true", "must be a number, not true"),
        ('learning_rate = "1e-3"', 'must be a number, not "1e-3"'),
        ("learning_rate = nan", "must be a finite number, not nan"),
        ("learning_rate = inf", "must be a finite number, not inf"),
        ("learning_rate = 0", "must be > 0, not 0"),
        ("warmup = 1.25", "must be >= 0 and <= 1, not 1.25"),
        ("compile = 1", "must be true or false, not 1"),
        ("trainer = 3", "must be a string, not 3"),
        ('schedule = "cosin"', 'must be "cosine", "linear" or "constant", not "cosin", did you mean "cosine"?'),
        ("schedule = false", 'must be "cosine", "linear" or "constant", not false'),
        ("processes = 1.5", 'must be an integer or "auto", not 1.5'),
        ('processes = "atuo"', 'must be an integer or "auto", not "atuo", did you mean "auto"?'),
        ("processes = true", 'must be an integer or "auto", not true'),
        ("processes = -3", "must be > 0, not -3"),
        ("epochs = 1", "exactly one of epochs and max_steps must be given"),
        ("options = 3", "must be a table, not 3"),
        ("options = { x = 1 }", "unknown key, none is expected here"),
        ("Batch-Size = 1", "unknown key, did you mean batch_size?"),
        ('"a\\u0085b" = 1', "unknown key, expected trainer, processes, epochs"),
        ('trainer = "a\\nb"', "there is no trainer 'a\\nb'"),
    ],
)
def test_a_wrong_value_is_said_in_english(mistakes, minimal, line, message):
    """The message says what is expected and what stands there, on one line."""
    (found,) = mistakes(minimal + line)
    assert found.startswith("run.toml:8 [train] max_steps" if "epochs" in line else "run.toml:9 [train")
    assert message in found


def test_more_passes_than_can_be_counted_are_refused(mistakes, minimal):
    """Their steps would be infinitely many."""
    (found,) = mistakes(minimal.replace("max_steps = 10", "epochs = 1e308"))
    assert found == "run.toml:8 [train] epochs: must be > 0 and <= 1e+06, not 1e+308"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[adapter]\nrank = 8", "run.toml:9 adapter: needs a model that has learnt something: give [model] base"),
        ("[adapter]\ndropout = 1.0", "run.toml:10 [adapter] dropout: must be >= 0 and < 1, not 1"),
        ("[adapter]\ntargets = []", "run.toml:10 [adapter] targets: must not be empty: name layers, such as"),
        ('[adapter]\ntargets = ["q", 1]', "run.toml:10 [adapter] targets.1: must be a string, not 1"),
        ("[adapter]\ntargets = 1", "run.toml:10 [adapter] targets: must be a string or an array, not 1"),
        ("[data.quality]\ndecontaminate = true", "decontaminate: there is no [[evaluate]] to compare with: name files"),
        ("early_stopping = 2", "run.toml:9 [train] early_stopping: there is nothing held out to measure: set"),
        ("[data.quality]\ndeduplicate = 0", 'deduplicate: must be "exact", "near" or false, not 0'),
        ("[registry]\ntags = { a = 1 }", "run.toml:10 [registry.tags] a: must be a string, not 1"),
        ('[registry]\npromote = { alias = "7" }', "run.toml:10 [registry.promote] alias: must be a lower-case letter"),
        ('[registry]\npromote = { alias = "a", if = " " }', "run.toml:10 [registry.promote] if: must not be empty"),
        ('[registry]\nurl = "models.db"', 'must be a URL such as sqlite:///registry.db, not "models.db"'),
        ('[registry]\nurl = "redis://x"', "no registry backend serves 'redis' URLs (there are: sqlite)"),
        ('[plugins.prefer]\n"metrics.x" = "y"', "must be KIND.NAME, KIND being format, trainer, metric, registry or"),
        ('[plugins.prefer]\n"metrics.x" = "y"', 'engine, did you mean "metric.x"?'),
        ("[[evaluate]]", "run.toml:9 [evaluate.0] name: this key is required"),
        ('extends = "base.toml"', "run.toml:9 [train] extends: unknown key, it belongs in the file's top"),
    ],
)  # fmt: skip
def test_tables_beside_train(mistakes, minimal, text, line):
    """Each with the line of the key, or of the table where the key is missing."""
    assert line in "\n".join(mistakes(minimal + text))


def test_missing_keys_are_told_at_their_tables_line(mistakes):
    """A missing key has no line of its own; a missing table has the file's first."""
    assert mistakes("\n[data]\nsources = [{ limit = 3 }]\n") == [
        "run.toml:1 name: this key is required",
        "run.toml:1 model: this table is required",
        "run.toml:1 train: this table is required",
        "run.toml:2 [data] format: this key is required",
        "run.toml:3 [data.sources.0] path: this key is required",
    ]
    assert "run.toml:3 [data] sources: one or more of these tables are required" in mistakes(
        'name = "a"\n[model]\n[data]\nformat = "qa"\n[train]\n'
    )


def test_model_needs_exactly_one_of_base_and_scratch(mistakes, minimal):
    """Neither and both are wrong."""
    text = "exactly one of base and [model.scratch] must be given"
    assert mistakes(minimal.replace("[model.scratch]", "[model]")) == [f"run.toml:2 [model] base: {text}"]
    assert mistakes(minimal, "model.base='./x'") == [f"--set model.base: {text}"]


def test_two_suites_of_one_name_and_a_metric_named_twice(mistakes, minimal):
    """Both would write over each other in the registry."""
    suite = '[[evaluate]]\nname = "s"\npath = "t"\nmetrics = ["exact_match"]\n'
    assert mistakes(minimal + suite + suite) == ['run.toml:14 [evaluate.1] name: two suites are named "s"']
    assert mistakes(minimal + suite.replace('"exact_match"', '"exact_match", "exact_match"')) == [
        'run.toml:12 [evaluate.0] metrics.1: metric "exact_match" is named twice'
    ]


def test_a_mistake_in_the_file_is_told_once_however_many_variants_share_it(mistakes, minimal):
    """And one in a variant at the variant's own line."""
    text = (
        minimal
        + 'batch_size = 0\n[variants.a]\ndata = { formt = "qa" }\n[variants.b.train]\nschedule = 1\n[variants.c]\n'
    )
    assert mistakes(text) == [
        "run.toml:9 [train] batch_size: must be > 0, not 0",
        "run.toml:11 [variants.a.data] formt: unknown key, did you mean format?",
        'run.toml:13 [variants.b.train] schedule: must be "cosine", "linear" or "constant", not 1',
    ]
    assert mistakes(text, variants=["c"]) == ["run.toml:9 [train] batch_size: must be > 0, not 0"]


def test_a_key_missing_from_a_table_that_a_variant_adds_to_is_the_files_mistake(mistakes, minimal):
    """Told once, at the table's own header; in an array that the variant replaced it is the variant's."""
    text = minimal.replace('format = "qa"\n', "") + "[variants.a]\ndata.max_rejected = 1\n[variants.b]\n"
    assert mistakes(text) == ["run.toml:3 [data] format: this key is required"]
    assert mistakes(minimal + "[variants.a]\ndata.sources = [\n{ limit = 1 }]\n") == [
        "run.toml:11 [variants.a.data.sources.0] path: this key is required"
    ]


def test_what_a_variant_cannot_change(mistakes, minimal):
    """Names and plugins belong to the file."""
    misplaced = "does not belong in a variant"
    text = (
        minimal + '[variants.a]\nname = "x"\nplugins = {}\n[variants.Bad]\n[variants]\nc = 3\n[variants.d.variants.e]\n'
    )
    assert mistakes(text) == [
        f"run.toml:10 [variants.a] name: {misplaced}: a variant's name is made of the file's: NAME-VARIANT",
        f"run.toml:11 [variants.a] plugins: {misplaced}: plugins are chosen once, for all variants",
        "run.toml:12 [variants] Bad: a variant's name must be a lower-case letter, then any of a-z 0-9 _ -",
        "run.toml:14 [variants] c: must be a table of what differs in this variant, not 3",
        "run.toml:15 [variants.d] variants: does not belong in a variant: a variant cannot have variants",
    ]
    assert mistakes("variants = 3\n" + minimal) == [
        "run.toml:1 variants: must be tables, one for each variant: [variants.NAME]"
    ]


def test_an_unknown_variant_gets_the_names_there_are(mistakes, minimal):
    """With the one that was meant."""
    text = minimal + "[variants.reasoning]\n[variants.math]\n"
    assert mistakes(text, variants=["resoning"]) == [
        "--variant resoning: there is no such variant, did you mean reasoning? (there are: reasoning, math)"
    ]
    assert mistakes(minimal, variants=["math"]) == [
        '--variant math: there is no variant "math": run.toml has no [variants]'
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.lr=1", "--set train.lr: unknown key, expected trainer"),
        ("train.lerning_rate=1", "--set train.lerning_rate: unknown key, did you mean learning_rate?"),
        ("train.batch_size=0", "--set train.batch_size: must be > 0, not 0"),
        ("train={batch_size=0}", "--set train.batch_size: must be > 0, not 0"),
        ("train=3", "--set train: must be a table, not 3"),
        ("model.base=x", '--set model.base: "x" is not a TOML value: strings need quotes, --set \'model.base="x"\''),
        ("model.base=it's", "strings need quotes, --set 'model.base=\"it'\"'\"'s\"'"),
        ("model.base=", '--set model.base: "" is not a TOML value: invalid value'),
        ('model.base="x', '--set model.base: "\\"x" is not a TOML value: unterminated string'),
        ("seed=1\nname='x'", "--set seed: "),
        ("seed=1\n[x]", "--set seed: "),
        ("seed", '--set "seed": must be KEY=VALUE, such as --set train.max_steps=100'),
        ("=1", '--set "=1": must be KEY=VALUE'),
        ("a..b=1", '--set "a..b=1": must be KEY=VALUE'),
        ("a b=1", '--set "a b=1": must be KEY=VALUE'),
        ('"a=1', '--set "\\"a=1": must be KEY=VALUE'),
        ("", '--set "": must be KEY=VALUE'),
        ("name.x=1", '--set name.x: name is "tiny", not a table'),
        ("data.sources.1.path='x'", '--set data.sources.1.path: data.sources is an array without an entry "1" (it has'),
        ("data.sources.-1.path='x'", 'data.sources is an array without an entry "-1" (it has indices 0 to 0)'),
        ("data.sources.path='x'", 'data.sources is an array without an entry "path"'),
        ("data.sources.99999999999999999999.path='x'", "data.sources is an array without an entry"),
        ("data.sources.0=3", "--set data.sources.0: must be a table, not 3"),
        ("data.sources.0.x.y=3", "--set data.sources.0.x: unknown key"),
        ("data.sources=[]", "--set data.sources: must not be empty"),
        (
            "evaluate.0.limit=3",
            '--set evaluate.0.limit: there is no array with an entry 0 (a table\'s key would be "0"',
        ),
        ("variants.a.seed=3", "--set variants.a.seed: set the key itself, and choose the variant with --variant"),
        ("registry.promote.if='x'", "--set registry.promote.alias: this key is required"),
        ("seed=0x" + "f" * 9999, "must be an integer of 64 bits, not one of 39996 bits"),
        ("seed=" + "[" * 9999, "is not a TOML value"),
        (".".join("a" * 200) + "=1", "the key has more than 64 parts"),
        ("name='\udcff'", "--set name: is not UTF-8"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_set(mistakes, minimal, override, line):
    """The key is the one that was typed, and a bare word gets the quotes that it lacks."""
    (found,) = mistakes(minimal, override)
    assert line in found
    assert found.startswith("--set ")
    assert found.isprintable()


def test_mistakes_of_file_and_command_line_come_together(mistakes, minimal):
    """The command line's come last."""
    assert mistakes(minimal + "batch_size = 0", "seed=x", "train.compile=1", "datum=1") == [
        "run.toml:9 [train] batch_size: must be > 0, not 0",
        '--set seed: "x" is not a TOML value: strings need quotes, --set \'seed="x"\'',
        "--set datum: unknown key, did you mean data?",
        "--set train.compile: must be true or false, not 1",
    ]


def test_an_override_hides_the_mistake_that_it_replaces(read_one, minimal):
    """What is not used is not checked."""
    assert read_one(minimal + "batch_size = 0", "train.batch_size=4").train.batch_size == 4


def test_options_of_components_are_checked_like_any_table(mistakes, minimal):
    """With the line of the key in the options' table."""
    text = minimal + 'trainer = "sgd"\noptions = { momentum = -1 }\n[data.options]\nstyl = "boxed"\nstyle = "box"\n'
    assert mistakes(text) == [
        "run.toml:10 [train.options] momentum: must be >= 0, not -1",
        "run.toml:12 [data.options] styl: unknown key, did you mean style?",
        'run.toml:13 [data.options] style: must be "plain" or "boxed", not "box", did you mean "boxed"?',
    ]
    suite = '[[evaluate]]\nname = "s"\npath = "t"\nformat = "{}"\nmetrics = ["exact_match"]\n'
    assert mistakes(minimal + suite.format("table") + suite.format("nope")) == [
        "run.toml:9 [evaluate.0.options] question: this key is required",
        'run.toml:15 [evaluate.1] name: two suites are named "s"',
        "run.toml:17 [evaluate.1] format: there is no format 'nope' (there are: bare, qa, table)",
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
    lines = mistakes(minimal, plugins=both)
    assert any(
        line.startswith("run.toml:4 [data] format: format 'qa' is provided by ours 1 and theirs 1: choose one with")
        for line in lines
    )


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
    """As attrs allows; and whatever else its constructor raises is the table's problem."""
    spec = FormatSpec(name="qa", summary="x", options=Range, factory="nowhere:X")
    local = MetricSpec(name="m", summary="x", factory="nowhere:X")
    plugins = Plugins(
        found=(Plugin(plugin="p", distribution="p", version="1", status="loaded", components=(spec, local)),)
    )

    def options(text, *overrides):
        lines = mistakes(f"{minimal}[data.options]\n{text}", *overrides, plugins=plugins)
        return [line for line in lines if "options" in line]

    assert options("low = 5\nhigh = 3") == ["run.toml:11 [data.options] high: must be above low (5), not 3"]
    assert options('low = "x"\nhigh = 200') == [
        'run.toml:10 [data.options] low: must be an integer, not "x"',
        "run.toml:11 [data.options] high: must be < 100, not 200",
    ]
    assert options("low = 13\nhigh = 20") == ["run.toml:9 [data] options: 13 is unlucky"]
    assert options("high = 20", "data.options.low=13") == ["--set data.options: 13 is unlucky"]
