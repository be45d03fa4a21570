import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.errors import UsageError
from modelwright.core.api.records import Figure, wilson
from modelwright.core.config.registry import Clause, Condition, parse_condition

OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "==": operator.eq}

names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
numbers = st.floats(allow_nan=False, allow_infinity=False)
clauses = st.builds(Clause, suite=names, metric=names, operator=st.sampled_from(sorted(OPERATORS)), threshold=numbers)
conditions = st.builds(Condition, clauses=st.lists(clauses, min_size=1, max_size=4).map(tuple))
spaces = st.sampled_from(["", " ", "  ", "\t"])


@given(conditions)
def test_a_condition_is_read_as_it_is_written(condition):
    """The text of a condition means that condition, for any names of suites and metrics."""
    assert parse_condition(str(condition)) == condition


@given(names, names, st.sampled_from(sorted(OPERATORS)), numbers, spaces, spaces)
def test_spaces_around_an_operator_mean_nothing(suite, metric, sign, number, before, after):
    """`a.b>=1` and `a.b  >= 1` are one condition."""
    text = f"{before}{suite}.{metric}{before}{sign}{after}{number!r}{after}"
    assert parse_condition(text) == parse_condition(f"{suite}.{metric} {sign} {number!r}")


@given(st.one_of(st.text(max_size=30), st.text(alphabet="ab.>=< 019and", max_size=20)))
def test_any_text_is_a_condition_or_refused_in_one_line(text):
    """Nothing else comes out, and nothing is evaluated."""
    try:
        condition = parse_condition(text)
    except UsageError as error:
        refusal = str(error)
    else:
        assert parse_condition(str(condition)) == condition
        return
    assert "condition" in refusal
    assert "\n" not in refusal


@given(st.sampled_from(sorted(OPERATORS)), numbers, numbers)
def test_each_operator_compares_as_its_sign_says(sign, measured, threshold):
    """The measured value is on the left."""
    condition = Condition(clauses=(Clause(suite="s", metric="m", operator=sign, threshold=threshold),))
    figure = Figure(value=measured, low=0.0, high=1.0, n=1)
    [(text, value, holds)] = condition.check({"s": {"m": figure}})
    assert (text, value) == (str(condition), measured)
    assert holds is OPERATORS[sign](measured, threshold)


def test_every_clause_is_checked_and_what_is_missing_does_not_hold():
    """So that one sees all unmet clauses, not only the first."""
    condition = parse_condition("gsm8k.accuracy >= 0.6 and gsm8k.speed < 2 and math.accuracy > 0.1")
    assert condition.check({"gsm8k": {"accuracy": wilson(0.6, 200)}}) == [
        ("gsm8k.accuracy >= 0.6", 0.6, True),
        ("gsm8k.speed < 2.0", None, False),
        ("math.accuracy > 0.1", None, False),
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        "accuracy >= 1",
        "a.b",
        "a.b => 0.6",
        "a.b = 0.6",
        "a.b >= high",
        "a.b >= c.d",
        "a.b >= 1 or c.d > 1",
        "a.b >= 60%",
        "a.b >= 1 and",
        "a.b >= 1e999",
        "a.b >= nan",
        "__import__('os')",
    ],
)
def test_the_error_says_where_and_what_was_expected(text, wording):
    """The character counts from 1, as editors do."""
    with pytest.raises(UsageError) as caught:
        parse_condition(text)
    wording(caught.value)
