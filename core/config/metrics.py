"""A metric with its options as one text, such as `exact_match(ignore_case=true)`.

The text is the name of the metric's figures everywhere: in the registry, in reports and in conditions. Figures made
with other options have another name, so they are never compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any, NamedTuple, NewType

from modelwright.core.config.errors import Invalid, dotted, fail, quoted, shown
from modelwright.core.config.files import parse_value
from modelwright.core.config.paths import Written

# A label in its canonical form: the metric's name; after it, if any option differs from its default, those options.
MetricLabel = NewType("MetricLabel", str)

# The options are everything up to the closing parenthesis that is not part of a string.
LABEL = re.compile(r"""([a-z][a-z0-9_-]*)(?:\(((?:[^()"'\n]|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')*)\))?""")
NAME = "name"
_FORM = "NAME or NAME(KEY=VALUE, …), such as exact_match(ignore_case=true)"


class Choice(NamedTuple):
    """A metric and the options that somebody chose for it."""

    name: str
    options: Mapping[str, Any]

    @property
    def label(self) -> MetricLabel:
        """The text: options by key, values as TOML writes them."""
        options = ", ".join(f"{dotted((key,))}={_toml(value)}" for key, value in sorted(self.options.items()))
        return MetricLabel(f"{self.name}({options})" if options else str(self.name))


def metric_name(label: str) -> str:
    """The name of the metric in a label, which may come from anywhere."""
    return label.partition("(")[0]


def parse_metric(value: Any) -> Choice:
    """Read a label, or the table of a run file: `{ name = "exact_match", ignore_case = true }`.

    Raises:
        Invalid: it is neither, or the options in parentheses are not TOML.
    """
    if isinstance(value, Mapping):
        if NAME not in value:
            raise Invalid([((NAME,), "this key is required")])
        if not isinstance(value[NAME], str):
            raise Invalid([((NAME,), f"must be a string, not {shown(value[NAME])}")])
        return Choice(value[NAME], {key: item for key, item in value.items() if key != NAME})
    if not isinstance(value, str):
        raise fail(f"must be a string or a table, not {shown(value)}")
    if not re.search(r"[\s=(]", value):
        return Choice(value, {})
    match = LABEL.fullmatch(value)
    if match is None:
        raise fail(f"must be {_FORM}, not {shown(value)}")
    try:
        options = parse_value("{" + (match[2] or "") + "}")
    except ValueError as error:
        raise fail(
            f"the options in {shown(value)} are not TOML ({getattr(error, 'msg', error)}); expected {_FORM}"
        ) from None
    return Choice(match[1], Written.mark(options, value.folder) if isinstance(value, Written) else options)


def metric_label(value: Any, _: Any = None) -> MetricLabel:
    """The label of what `parse_metric` reads.

    Raises:
        Invalid: as `parse_metric`.
    """
    return parse_metric(value).label


def _toml(value: Any) -> str:
    """A value as TOML in a line; one text for equal values, so 5.0 is written as 5."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dotted((key,))}={_toml(item)}" for key, item in sorted(value.items())) + "}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return value.isoformat() if isinstance(value, date | time) else str(value)
