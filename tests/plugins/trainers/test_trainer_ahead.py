"""What comes next is made while the last one is used."""

import threading

import pytest

from modelwright.plugins.trainers.batches.prefetch import Ahead


def test_everything_is_made_once_and_in_order():
    """Over calls that follow one another, too."""
    made = []
    items = [[number] for number in range(7)]
    ahead = Ahead(lambda item: made.append(item[0]) or item[0] * 10)
    assert list(ahead.each(items[:3], items[3])) == [0, 10, 20]
    assert list(ahead.each(items[3:], None)) == [30, 40, 50, 60]
    assert made == [0, 1, 2, 3, 4, 5, 6]


def test_the_next_one_is_made_while_the_last_is_used():
    """The first of the next call as well."""
    done = {name: threading.Event() for name in "abc"}
    items = [["a"], ["b"], ["c"]]
    ahead = Ahead(lambda item: done[item[0]].set())
    for _ in ahead.each(items[:1], items[1]):
        assert done["b"].wait(10)
    for _ in ahead.each(items[1:2], items[2]):
        assert done["c"].wait(10)


def test_another_call_than_the_one_that_was_told_of_is_made_as_well():
    """A step that is done again, say."""
    items = [[1], [2]]
    ahead = Ahead(lambda item: item[0])
    assert list(ahead.each(items[:1], items[1])) == [1]
    assert list(ahead.each(items[:1])) == [1]


def test_an_error_is_raised_where_its_result_would_have_come():
    """Not before: what came earlier is used."""
    ahead = Ahead(lambda item: 1 // item[0])
    values = ahead.each([[1], [0]])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)
