"""Evaluation files: which models are graded on which test sets, without a run."""

from __future__ import annotations

import json

import pytest
import tomli_w

from modelwright.core.config import ConfigError, EvalConfig, eval_from_plain, is_eval_file, read_eval, to_plain

EVAL = """\
models = ["math", "math@3", "@production"]
output = "results"
[[evaluate]]
name = "sums"
path = "test.jsonl"
format = "qa"
metrics = ["exact_match"]
[evaluate.options]
style = "boxed"
[registry]
url = "sqlite:///models.db"
"""


@pytest.fixture
def evaluation(write, plugins):
    def evaluation(text=EVAL, *overrides, name="eval.toml") -> EvalConfig:
        return read_eval(write(text, name), overrides=overrides, plugins=plugins).config

    return evaluation


@pytest.fixture
def wrong(evaluation, places):
    def wrong(*arguments, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            evaluation(*arguments, **options)
        return places(caught.value)

    return wrong


def test_an_evaluation_file_is_read_like_a_run_file(evaluation, tmp_path):
    """Paths against the file, options typed, the rest by default."""
    config = evaluation()
    assert config.models == ("math", "math@3", "@production")
    assert (config.seed, config.output) == (17, str(tmp_path / "results"))
    assert config.registry.url == f"sqlite:///{tmp_path}/models.db"
    (suite,) = config.evaluate
    assert (suite.name, suite.path, suite.format) == ("sums", str(tmp_path / "test.jsonl"), "qa")
    assert suite.options.style == "boxed"


def test_all_models_and_values_from_the_command_line(evaluation):
    """`--set` works as it does for runs."""
    assert evaluation(EVAL, 'models="all"', "seed=3", "evaluate.0.limit=5").models == "all"
    assert evaluation(EVAL, "evaluate.0.limit=5").evaluate[0].limit == 5


def test_it_survives_json_and_toml(evaluation, plugins, write, wording):
    """For worker processes, and for `config show`."""
    config = evaluation()
    values = to_plain(config)
    assert eval_from_plain(json.loads(json.dumps(values)), plugins) == config
    assert evaluation(tomli_w.dumps(values), name="elsewhere/again.toml") == config
    del values["models"]
    with pytest.raises(ConfigError) as caught:
        eval_from_plain(values, plugins)
    assert [problem.key for problem in caught.value.problems] == ["models"]
    wording(caught.value)


def test_every_mistake_has_its_line(wrong):
    """All at once."""
    text = """\
modles = "all"
models = ["Math", 3, "math@production", "math", "math"]
[[evaluate]]
name = "sums"
path = "test.jsonl"
metrics = ["exact_mtch"]
[[evaluate]]
name = "more"
path = ""
format = "qua"
metrics = []
[registry]
tags = {}
[model]
"""
    assert wrong(text) == [
        "eval.toml:1 modles",
        "eval.toml:2 models.0",
        "eval.toml:2 models.1",
        "eval.toml:2 models.2",
        "eval.toml:3 [evaluate.0] format",
        "eval.toml:6 [evaluate.0] metrics.0",
        "eval.toml:9 [evaluate.1] path",
        "eval.toml:10 [evaluate.1] format",
        "eval.toml:11 [evaluate.1] metrics",
        "eval.toml:13 [registry] tags",
        "eval.toml:14 model",
    ]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("models=[]", "models"),
        ("models='math'", "models"),
        ("models='al'", "models"),
        ("models=['a', 'a']", "models.1"),
        ("evaluate=[]", "evaluate"),
        ("variants.a.seed=1", "variants"),
        ("extends='x.toml'", "extends"),
    ],
)
def test_a_wrong_value(wrong, override, key):
    """In English, where it was given."""
    assert wrong(EVAL, override) == [f"--set {key}"]


def test_suites_of_one_name(wrong):
    """They would write over each other."""
    suite = EVAL[EVAL.index("[[evaluate]]") : EVAL.index("[registry]")]
    assert wrong(EVAL + suite) == ["eval.toml:13 [evaluate.1] name"]


def test_an_empty_file_lacks_models_and_test_sets(wrong):
    """Not a run's tables."""
    assert wrong("") == ["eval.toml:1"]


def test_evaluation_files_are_recognized(write, minimal, tmp_path):
    """By what they hold, in either syntax; one that cannot be read is left to the reader of runs."""
    assert is_eval_file(write(EVAL, "eval.toml"))
    assert is_eval_file(write("models: all\n", "eval.yaml"))
    assert is_eval_file(write('extends = "eval.toml"\nseed = 3\n', "more.toml"))
    assert is_eval_file(write(EVAL.partition("\n")[2], "forgot-models.toml"))
    assert not is_eval_file(write(minimal))
    assert not is_eval_file(write("evaluate = []\n" + minimal))
    assert not is_eval_file(write("models = ", "broken.toml"))
    assert not is_eval_file(tmp_path / "nowhere.toml")
    assert not is_eval_file(tmp_path)
