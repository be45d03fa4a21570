"""An evaluation from flags: what is taken where nothing is said, and errors that name the flag."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.errors import UsageError
from modelwright.core.config import ConfigError
from modelwright.core.config.schema import SUITE_NAME
from modelwright.core.plugins import discover
from modelwright.core.stages.evaluate.detect_format import default_metric, recognise
from modelwright.core.stages.evaluate.from_flags import Direct, direct_config, suite_name

SUM = {"question": "What is 1+1?", "answer": "#### 2"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/GSM8K test.jsonl.gz", "gsm8k_test"),
        ("/data/test.jsonl", "test"),
        ("/data/*.jsonl", "data"),
        ("/data/2024-11.csv", "data_2024-11"),
        ("builtin:arithmetic/test", "test"),
        ("/data/größe.jsonl", "gr_e"),
        ("/data/日本.jsonl", "data"),
        ("/data/" + "x" * 300, "x" * 64),
    ],
)
def test_a_suite_is_named_for_its_data(path, name):
    """Made a valid name."""
    assert suite_name(path) == name


@given(st.text(max_size=40))
def test_any_path_gives_a_valid_name(path):
    """Whatever is in it."""
    assert SUITE_NAME.fullmatch(suite_name(path))


def test_what_is_taken_is_said(tmp_path, rows_file):
    """The metric that fits the format, the data's name, the defaults of an evaluation file."""
    config, said = direct_config(
        Direct(models=("a", "@b"), data=str(rows_file(tmp_path / "sums.jsonl", [SUM])), format_name="math"),
        discover(),
    )
    (suite,) = config.evaluate
    assert (config.models, config.seed) == (("a", "@b"), 17)
    assert (suite.name, suite.metrics, suite.limit, suite.samples) == ("sums", ("math_accuracy",), None, 1)
    assert (suite.generation.max_tokens, suite.generation.temperature) == (256, 0.0)
    assert said == [
        "metric: math_accuracy (--metric says otherwise)",
        "suite:  sums (made of the data's name; --name says otherwise)",
    ]
    assert default_metric("general") == "exact_match"


def test_flags_are_what_an_evaluation_file_would_say(tmp_path, rows_file):
    """All of them."""
    config, said = direct_config(
        Direct(
            models="all",
            data=str(rows_file(tmp_path / "sums.jsonl", [SUM])),
            format_name="math",
            options=['calculator="keep"'],
            metrics=("exact_match", "math_accuracy"),
            name="mine",
            limit=3,
            samples=2,
            max_tokens=9,
            temperature=0.5,
            seed=0,
        ),
        discover(),
    )
    (suite,) = config.evaluate
    assert (config.models, config.seed, said) == ("all", 0, [])
    assert (suite.name, suite.metrics, suite.limit, suite.samples) == ("mine", ("exact_match", "math_accuracy"), 3, 2)
    assert (suite.generation.max_tokens, suite.generation.temperature) == (9, 0.5)
    assert suite.options.calculator == "keep"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"metrics": ["exact_mach"]}, "--metric: there is no metric 'exact_mach', did you mean 'exact_match'?"),
        ({"metrics": ["exact_match"] * 2}, '--metric: metric "exact_match" is named twice'),
        ({"format_name": "mat"}, "--format: there is no format 'mat', did you mean 'math'?"),
        ({"name": "Sums!"}, "--name: must be a lower-case letter, then any of a-z 0-9 _ -"),
        ({"models": ["a", "a"]}, '--model: model "a" is named twice'),
        ({"options": ["calculater=1"]}, "--option calculater: unknown key, did you mean calculator?"),
        ({"options": ["calculator=remove"]}, "--option calculator=remove: is no KEY=VALUE in TOML"),
        ({"seed": 2**63}, "--seed: must be"),
        ({"max_tokens": 0}, "--max-tokens: must be"),
        ({"temperature": -1.0}, "--temperature: must be"),
        ({"temperature": float("nan")}, "--temperature: must be"),
        ({"data": ""}, "--data: must not be empty"),
        ({"data": "https://example.org/a.jsonl"}, "--data: must be a path on disk, not the URL"),
        ({"format_name": None, "options": ["a=1"]}, "--option: needs --format, whose option it is"),
    ],
)
def test_an_error_names_the_flag(tmp_path, rows_file, given, line):
    """Not the key of a file that nobody wrote."""
    data = str(rows_file(tmp_path / "sums.jsonl", [SUM]))
    with pytest.raises(ConfigError) as error:
        direct_config(Direct(**{"models": ("a",), "data": data, "format_name": "math", **given}), discover())
    assert any(problem.startswith(line) for problem in error.value.lines), error.value.lines


def test_the_one_format_that_reads_the_rows_is_taken(tmp_path, install_plugin):
    """Asked for where several do, told of where none does."""
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"frage": "1+1?", "antwort": "2"}) + "\n")
    with pytest.raises(
        UsageError, match=r"no installed format reads its first rows .*math: .*: name one with --format"
    ):
        recognise(str(path), discover(), seed=1)
    install_plugin(
        "german-format",
        """
        from attrs import frozen
        from modelwright import Example, FormatSpec, Message, RowError, hookimpl

        class German:
            def __init__(self, options): pass
            def read(self, row):
                if "frage" not in row:
                    raise RowError("no frage")
                yield Example(messages=[Message(role="user", content=row["frage"])], answer=row["antwort"])

        @hookimpl
        def modelwright_formats():
            return [FormatSpec(name="german", summary="German", factory="german_format:German")]
        """,
    )
    assert recognise(str(path), discover(), seed=1) == "german"
    path.write_text(json.dumps(SUM) + "\n")
    with pytest.raises(
        UsageError, match=r"the formats .*math.* (both|all) read its first rows: say which with --format"
    ):
        recognise(str(path), discover(), seed=1)
