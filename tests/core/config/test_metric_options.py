"""Metrics with options, in files, on the command line and in conditions: one text names the figure."""

from __future__ import annotations

import pytest
import tomli_w
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api import FormatSpec, MetricSpec, UsageError
from modelwright.core.config import ConfigError, eval_from_plain, read_eval, read_run, to_plain
from modelwright.core.config.components import metric_with_options
from modelwright.core.config.errors import Invalid
from modelwright.core.config.metrics import Choice, metric_name, parse_metric
from modelwright.core.config.registry import parse_condition
from modelwright.core.plugins import Plugin, Plugins, discover

EVAL = """\
models = "all"
[[evaluate]]
name = "sums"
path = "test.jsonl"
format = "math"
metrics = METRICS
"""
RUN = """\
name = "tiny"
[model.scratch]
[data]
format = "math"
[[data.sources]]
path = "builtin:arithmetic/train"
[train]
max_steps = 2
[[evaluate]]
name = "test"
path = "builtin:arithmetic/test"
metrics = ["math_accuracy", { name = "exact_match", ignore_case = true }]
"""


@pytest.fixture
def labels(write):
    """The labels of the metrics of an evaluation file that has `metrics = TEXT`."""
    return lambda text, *overrides: (
        read_eval(write(EVAL.replace("METRICS", text), "eval.toml"), overrides=overrides, plugins=discover())
        .config.evaluate[0]
        .metrics
    )


@pytest.fixture
def wrong(labels, tmp_path):
    def wrong(text: str, *overrides: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            labels(text, *overrides)
        return caught.value

    return wrong


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('"exact_match"', "exact_match"),
        ('{ name = "exact_match" }', "exact_match"),
        ('{ name = "exact_match", ignore_case = false }', "exact_match"),
        ('{ name = "exact_match", ignore_case = true }', "exact_match(ignore_case=true)"),
        ('"exact_match(ignore_case=true)"', "exact_match(ignore_case=true)"),
        ('"exact_match( ignore_case = true )"', "exact_match(ignore_case=true)"),
        ('"exact_match()"', "exact_match"),
        ('{ name = "math_accuracy", time_limit = 7 }', "math_accuracy(time_limit=7)"),
        ('{ name = "math_accuracy", time_limit = 7.0 }', "math_accuracy(time_limit=7)"),
        ('"math_accuracy(time_limit=0.25)"', "math_accuracy(time_limit=0.25)"),
    ],
)
def test_equal_choices_have_one_label(labels, text, label):
    """Whether a table or a text, defaults written or left out."""
    assert labels(f"[{text}]") == (label,)


def test_one_metric_may_be_there_with_several_options(labels):
    """They are figures of their own."""
    metrics = '["exact_match", { name = "exact_match", ignore_case = true }]'
    assert labels(metrics) == ("exact_match", "exact_match(ignore_case=true)")


@pytest.mark.parametrize(
    ("metrics", "keys"),
    [
        pytest.param('["math_accuracy", { name = "exact_match", ignore_cse = 1 }]', ["ignore_cse"], id="unknown"),
        pytest.param('[{ name = "exact_match", ignore_case = 5 }]', ["ignore_case"], id="wrong value"),
        pytest.param('["exact_match(ignore_cse=true)"]', ["ignore_cse"], id="unknown option in a text"),
        pytest.param('[{ name = "exact_mach" }, { nam = "exact_match" }]', ["name", "name"], id="wrong names"),
        pytest.param("[{ name = 5 }]", ["name"], id="a number as name"),
        pytest.param('["exact_match(", "exact_match(true)", 5]', [f"metrics.{i}" for i in range(3)], id="not a metric"),
        pytest.param('["exact_match", "exact_match(ignore_case=false)"]', ["metrics.1"], id="the same one twice"),
    ],
)  # fmt: skip
def test_errors_name_the_option(wrong, wording, metrics, keys):
    """All at once, with the line of the file."""
    problems = wrong(metrics).problems
    assert [problem.key for problem in problems] == keys
    assert {problem.line for problem in problems} == {6}
    for problem in problems:
        wording(problem)


def test_set_takes_tables(labels, wrong, wording):
    """As it takes everything of TOML."""
    override = 'evaluate.0.metrics=[{name="exact_match", ignore_case=true}]'
    assert labels('["exact_match"]', override) == ("exact_match(ignore_case=true)",)
    (problem,) = wrong('["exact_match"]', override.replace("ignore_case", "ignore_cse")).problems
    assert (problem.source, problem.key) == ("--set", "evaluate.0.metrics.0.ignore_cse")
    wording(problem)


def test_yaml_takes_them_as_well(write):
    """A mapping."""
    text = "models: all\nevaluate:\n- name: sums\n  path: test.jsonl\n  format: math\n  metrics:\n"
    text += "  - math_accuracy\n  - {name: exact_match, ignore_case: true}\n"
    config = read_eval(write(text, "eval.yaml"), plugins=discover()).config
    assert config.evaluate[0].metrics == ("math_accuracy", "exact_match(ignore_case=true)")


def test_the_resolved_configuration_is_read_back(write, tmp_path):
    """`config show` prints what a file may hold, and workers read it."""
    metrics = '[{ name = "exact_match", ignore_case = true }, "math_accuracy"]'
    config = read_eval(write(EVAL.replace("METRICS", metrics), "eval.toml"), plugins=discover()).config
    assert eval_from_plain(to_plain(config), discover()) == config
    shown = write(tomli_w.dumps(to_plain(config)), "shown.toml")
    assert read_eval(shown, plugins=discover()).config.evaluate == config.evaluate


def test_a_condition_names_the_options(write):
    """In any spelling of them; without options it means another figure."""
    promote = '[registry.promote]\nalias = "best"\nif = "test.exact_match( ignore_case = true ) >= 0.5"\n'
    (config,) = read_run(write(RUN + promote), plugins=discover()).configs
    assert config.registry.promote is not None
    assert config.registry.promote.condition is not None
    (clause,) = parse_condition(config.registry.promote.condition).clauses
    assert (clause.suite, clause.metric) == ("test", "exact_match(ignore_case=true)")


def test_a_condition_on_other_options_is_refused(write, wording):
    """The message has those that the run measures."""
    promote = '[registry.promote]\nalias = "best"\nif = "test.exact_match >= 0.5"\n'
    with pytest.raises(ConfigError) as caught:
        read_run(write(RUN + promote), plugins=discover())
    (problem,) = caught.value.problems
    assert (problem.table, problem.key, problem.line) == ("registry.promote", "if", 15)
    wording(problem)


@pytest.mark.parametrize("options", ["(", "(ignore_case)", "(ignore_case=true"])
def test_broken_options_in_a_condition(options, wording):
    """It says where."""
    with pytest.raises(UsageError) as caught:
        parse_condition(f"test.exact_match{options} > 0.5")
    wording(caught.value)


_KEYS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=5)
_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.dictionaries(_KEYS.filter(lambda key: key != "name"), _VALUES, max_size=3))
def test_any_options_survive_their_label(options):
    """A label reads back to equal options, is on one line, and a condition holds it."""
    choice = Choice("grade", options)
    label = choice.label
    assert label.isprintable()
    assert parse_metric(label) == choice
    assert parse_metric(label).label == label
    assert metric_name(label) == "grade"
    assert str(parse_condition(f"test.{label} > 0.5")) == f"test.{label} > 0.5"


@frozen(kw_only=True)
class GradeOptions:
    scale: int
    ways: tuple[str, ...] = ("a",)


@pytest.fixture
def grading() -> Plugins:
    """A metric with an option that must be given, one that grades what cannot be had, and a format."""
    components = (
        MetricSpec(name="grade", summary="a grade", options=GradeOptions, factory="nowhere:Grade"),
        MetricSpec(name="surprise", summary="a surprise", inputs="logprobs", factory="nowhere:Surprise"),
        FormatSpec(name="math", summary="mathematics", factory="nowhere:Math"),
    )
    plugin = Plugin(plugin="grading", distribution="grading", version="1", status="loaded", components=components)
    return Plugins(found=(plugin,))


def test_an_option_without_a_default_is_always_in_the_label(grading):
    """And its instance is what the metric is made with."""
    values = {"name": "sums", "path": "/x.jsonl", "format": "math", "metrics": [{"name": "grade", "scale": 5}]}
    config = eval_from_plain({"models": "all", "evaluate": [values]}, grading)
    (label,) = config.evaluate[0].metrics
    assert label == "grade(scale=5)"
    assert metric_with_options(grading, label)[1] == GradeOptions(scale=5)


def test_required_options_are_demanded(grading, wording):
    """As any key, and beside what else is wrong."""
    values = {"name": "sums", "path": "/x.jsonl", "format": "math", "metrics": ["grade", {"name": "surprise"}]}
    with pytest.raises(ConfigError) as caught:
        eval_from_plain({"models": "all", "evaluate": [values]}, grading)
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["evaluate.0.metrics.0.scale", "evaluate.0.metrics.1.name"]
    for problem in caught.value.problems:
        wording(problem)


def test_no_option_is_called_name():
    """The key has the metric's name."""

    @frozen
    class Options:
        name: str = ""

    with pytest.raises(TypeError, match="'name'"):
        MetricSpec(name="grade", summary="a grade", options=Options, factory="nowhere:Grade")


def test_what_is_not_a_metric_is_invalid():
    """Of any type."""
    for value in (None, 5, [], {}, {"name": 5}, "x("):
        with pytest.raises(Invalid):
            parse_metric(value)
