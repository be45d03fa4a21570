"""Which columns a row is read from: a table of shapes, tried in order, that reading and recognising share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
from attrs import frozen

from modelwright.core.api import RowError
from modelwright.plugins.formats.rows import columns

Reading = TypeVar("Reading")
Row = Mapping[str, Any]


@frozen
class Shape(Generic[Reading]):
    """One way in which data sets write their rows.

    Attributes:
        name: what people call it.
        find: what a row of this shape is read from; None for any other row. It is an attrs class whose text fields
            are names of columns.
        read: reads a row from what `find` gave.
        note: stands behind the first column, where the columns' names leave something open.
        mapped: whether a person named the columns.
    """

    name: str
    find: Callable[[Row], Any]
    read: Callable[[Row, Any], Reading]
    note: str = ""
    mapped: bool = False

    def line(self, found: Any) -> str:
        """The shape and the columns, for people."""
        named = [f"{name} ← {column}" if self.mapped else column for name, column in _named(found)]
        if named and self.note:
            named[0] = f"{named[0]} {self.note}"
        return f"{self.name}: {', '.join(named)}" if named else self.name


class Shapes(Generic[Reading]):
    """Shapes in the order in which they are tried.

    Args:
        shapes: the first that fits a row is taken.
        expected: what to say where none fits.
    """

    def __init__(self, shapes: Sequence[Shape[Reading]], expected: str) -> None:
        self._shapes = tuple(shapes)
        self._expected = expected

    def read(self, row: Row) -> Reading:
        """What the first shape that fits makes of a row.

        Raises:
            RowError: none fits, or the row holds something else than its columns promise.
        """
        shape, found = self._find(row)
        return shape.read(row, found)

    def recognise(self, row: Row) -> str:
        """One line that says what a row is read as.

        Raises:
            RowError: no shape fits.
        """
        shape, found = self._find(row)
        return shape.line(found)

    def _find(self, row: Row) -> tuple[Shape[Reading], Any]:
        for shape in self._shapes:
            found = shape.find(row)
            if found is not None:
                return shape, found
        raise RowError(f"{self._expected}; this row has: {columns(row)}")


def mapped(named: Any, read: Callable[[Row, Any], Reading]) -> Shapes[Reading]:
    """The table for columns that a person has named: it has one shape, which is nothing but those columns.

    Args:
        named: an attrs class whose fields are names of columns or None: the option `columns`.
        read: reads a row from it.
    """
    names = [column for _, column in _named(named)]

    def find(row: Row) -> Any:
        for column in names:
            if column not in row:
                raise RowError(
                    f"there is no column {column!r}, which the option columns names; this row has: {columns(row)}"
                )
        return named

    return Shapes([Shape("columns as mapped", find, read, mapped=True)], "")


def _named(found: Any) -> list[tuple[str, str]]:
    """The columns that something is read from, each with what it is."""
    return [
        (field.name, column)
        for field in attrs.fields(type(found))
        if isinstance(column := getattr(found, field.name), str)
    ]
