import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.api.records import Figure, wilson
from modelwright.core.registry.compare import difference, differing, flat


@pytest.mark.parametrize(
    ("first", "other", "low", "high"),
    [
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((2, 7), (6, 7), 0.0582, 0.8062),
        ((0, 29), (5, 56), -0.0381, 0.1926),
        ((0, 20), (0, 10), -0.1611, 0.2775),
        ((0, 10), (10, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_is_the_published_one(first, other, low, high):
    """Newcombe's Table II (1998), method 10, for six of his contrasts."""
    found = difference(*(wilson(count / n, n) for count, n in (first, other)), higher_is_better=True)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.verdict == ("better" if low > 0 else "not decided")


shares = st.tuples(st.integers(0, 300), st.integers(1, 300)).map(lambda pair: wilson(min(pair) / max(pair), max(pair)))


@given(shares, shares)
def test_a_comparison_turned_round_is_its_mirror_image(first, other):
    """Who is compared with whom does not change what is decided."""
    forth, back = (difference(*pair, higher_is_better=True) for pair in ((first, other), (other, first)))
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)
    assert {forth.verdict, back.verdict} in ({"better", "worse"}, {"not decided"})
    assert forth.low <= forth.value <= forth.high


@pytest.mark.parametrize(("direction", "verdict"), [(True, "better"), (False, "worse"), (None, "higher")])
def test_the_metrics_direction_says_what_is_better(direction, verdict):
    """A lower loss is better; for an unknown metric there is no verdict."""
    assert difference(wilson(0.2, 500), wilson(0.8, 500), higher_is_better=direction).verdict == verdict


def test_no_examples_decide_nothing():
    """For any interval that a plugin gives without examples."""
    nothing = Figure(value=0.0, low=0.0, high=0.0, n=0)
    assert difference(nothing, wilson(1.0, 500), higher_is_better=True).verdict == "not decided"


def test_only_what_differs_is_kept_for_each_table():
    """None where a table has no such key; True is not 1."""
    tables = [{"same": 1, "a": True, "gone": "x"}, {"same": 1, "a": 1, "new": [1]}]
    assert differing(tables) == {"a": (True, 1), "gone": ("x", None), "new": (None, [1])}


def test_nested_tables_become_dotted_keys():
    """Arrays of tables are counted through, other arrays stay whole."""
    nested = {"train": {"rate": 0.1, "options": {}}, "suites": [{"name": "a"}, {"name": "b"}], "names": ["x", "y"]}
    assert flat(nested) == {
        "train.rate": 0.1,
        "train.options": {},
        "suites[0].name": "a",
        "suites[1].name": "b",
        "names": ["x", "y"],
    }
