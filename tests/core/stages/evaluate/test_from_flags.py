"""An evaluation from flags: what is taken where nothing is said, and errors that name the flag."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.errors import UsageError
from modelwright.core.config import ConfigError
from modelwright.core.config.data import SourceConfig
from modelwright.core.config.schema import SUITE_NAME
from modelwright.core.plugins import discover
from modelwright.core.stages.evaluate.from_flags import (
    Flags,
    config_from_flags,
    default_metric,
    detect_format,
    suite_name,
)

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
    """With any content."""
    assert SUITE_NAME.fullmatch(suite_name(path))


def test_what_is_taken_is_said(tmp_path, rows_file, wording):
    """The metric that fits the format, the data's name, the defaults of an evaluation file."""
    config, said = config_from_flags(
        Flags(models=("a", "@b"), data=str(rows_file(tmp_path / "sums.jsonl", [SUM])), format_name="math"),
        discover(),
    )
    (suite,) = config.evaluate
    assert (config.models, config.seed) == (("a", "@b"), 17)
    assert (suite.name, suite.metrics, suite.limit, suite.samples) == ("sums", ("math_accuracy",), None, 1)
    assert (suite.generation.max_tokens, suite.generation.temperature) == (256, 0.0)
    assert len(said) == 2
    for line in said:
        wording(line)
    assert default_metric("general") == "exact_match"


def test_flags_are_what_an_evaluation_file_would_say(tmp_path, rows_file):
    """All of them."""
    config, said = config_from_flags(
        Flags(
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
    ("given", "flag", "key"),
    [
        pytest.param({"metrics": ["exact_mach"]}, "--metric", "", id="metric exact_mach"),
        pytest.param({"metrics": ["exact_match"] * 2}, "--metric", "", id="metric twice"),
        pytest.param({"metrics": ["exact_match(ignore_cse=true)"]}, "--metric", "ignore_cse", id="metric option"),
        pytest.param({"metrics": ["exact_match ignore_case=true"]}, "--metric", "", id="options without parentheses"),
        pytest.param({"format_name": "mat"}, "--format", "", id="format mat"),
        pytest.param({"name": "Sums!"}, "--name", "", id="name Sums!"),
        pytest.param({"models": ["a", "a"]}, "--model", "", id="model twice"),
        pytest.param({"options": ["calculater=1"]}, "--option", "calculater", id="option calculater=1"),
        pytest.param({"options": ["calculator=remove"]}, "--option", "calculator=remove", id="option without quotes"),
        pytest.param({"seed": 2**63}, "--seed", "", id="seed 2**63"),
        pytest.param({"max_tokens": 0}, "--max-tokens", "", id="max_tokens 0"),
        pytest.param({"temperature": -1.0}, "--temperature", "", id="temperature -1"),
        pytest.param({"temperature": float("nan")}, "--temperature", "", id="temperature nan"),
        pytest.param({"data": ""}, "--data", "", id="no data"),
        pytest.param({"data": "https://example.org/a.jsonl"}, "--data", "", id="data at a URL"),
        pytest.param({"format_name": None, "options": ["a=1"]}, "--option", "", id="option without a format"),
    ],
)  # fmt: skip
def test_an_error_names_the_flag(tmp_path, rows_file, wording, given, flag, key):
    """Not the key of a file that nobody wrote."""
    data = str(rows_file(tmp_path / "sums.jsonl", [SUM]))
    with pytest.raises(ConfigError) as error:
        config_from_flags(Flags(**{"models": ("a",), "data": data, "format_name": "math", **given}), discover())
    (problem,) = error.value.problems
    assert (problem.source, problem.key) == (flag, key)
    wording(problem)


def test_the_one_format_that_reads_the_rows_is_taken(tmp_path, install_plugin):
    """It must be given if several do, and is reported if none does."""
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"frage": "1+1?", "antwort": "2"}) + "\n")
    with pytest.raises(
        UsageError, match=r"no installed format reads its first rows .*math: .*: choose one with --format"
    ):
        detect_format(SourceConfig(path=str(path)), discover(), seed=1)
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
    assert detect_format(SourceConfig(path=str(path)), discover(), seed=1) == "german"
    path.write_text(json.dumps(SUM) + "\n")
    with pytest.raises(
        UsageError, match=r"the formats .*math.* (both|all) read its first rows; choose one with --format"
    ):
        detect_format(SourceConfig(path=str(path)), discover(), seed=1)
