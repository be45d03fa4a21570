"""The errors of a configuration: found by key path, reported by file and line, all at once.

Below: values and keys as TOML writes them, for messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from typing import Any

from attrs import asdict, frozen

from modelwright.core.api.errors import UsageError
from modelwright.core.api.wording import closest, either, printable

# Deeper than any sensible configuration, and shallow enough for recursive code.
DEEPEST = 64
TOO_DEEP = f"tables and arrays are nested more than {DEEPEST} deep"

KeyPath = tuple[str | int, ...]
Finding = tuple[KeyPath, str]


class Invalid(Exception):  # noqa: N818 - it only carries findings up to the reader
    """A value cannot be structured.

    Attributes:
        findings: each thing that is wrong, as (key path from the value that was structured, message).
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings: tuple[Finding, ...] = tuple(findings)
        super().__init__("; ".join(message for _, message in self.findings))


def fail(message: str) -> Invalid:
    """An `Invalid` about the value itself."""
    return Invalid([((), message)])


def below(key: str | int, findings: Iterable[Finding]) -> list[Finding]:
    """The same findings, relative to the table or array that holds the value under `key`."""
    return [((key, *path), message) for path, message in findings]


class NotValidError(Exception):
    """A text is not valid in its syntax; `line` and `column` count from 1 and may be unknown."""

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line, self.column = line, column


@frozen(kw_only=True)
class Problem:
    """One line of a `ConfigError`.

    Attributes:
        source: the file as the caller named it, or "--set".
        line: in the file, from 1; None if there is none.
        column: from 1, for syntax errors.
        table: the table's header without brackets; empty for the file's top, and for `--set`.
        key: the key in that table; for `--set` the whole dotted path.
        message: what is wrong, what is expected, and what to do.
    """

    source: str
    line: int | None = None
    column: int | None = None
    table: str = ""
    key: str = ""
    message: str

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.source, self.line, self.column) if part is not None)
        return f"{' '.join(filter(None, (place, self.table and f'[{self.table}]', self.key)))}: {self.message}"

    def to_row(self) -> dict[str, Any]:
        """What `modelwright config check --json` prints."""
        return asdict(self)


class ConfigError(UsageError):
    """A configuration is wrong; `str()` gives one line for each problem.

    Attributes:
        problems: every one of them: by line, then those of `--set`.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """The problems as the command line prints them."""
        return tuple(str(problem) for problem in self.problems)


# Values and keys as TOML writes them

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST = 60
# Floats below it that are whole numbers are written without an exponent.
_EXACT = 10**15
# Longer integers are not written out; Python refuses to print those of several thousand digits.
_BITS = 128


def quoted(text: str) -> str:
    """`text` as a TOML string, in full."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def shown(value: Any) -> str:
    """A value as TOML writes it, shortened; tables and arrays by their type only."""
    if isinstance(value, str):
        return quoted(_short(value))
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, Sequence | set | frozenset):
        return "an array" if value else "an empty array"
    if value is None:
        value = "null"
    elif isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > _BITS:
        value = f"an integer of {value.bit_length()} bits"
    elif isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    elif isinstance(value, date | time):
        value = value.isoformat()
    return printable(_short(str(value)))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def dotted(path: KeyPath) -> str:
    """A key path as `--set` takes it; parts that are not bare keys are quoted."""
    return ".".join(part if _BARE.fullmatch(part) else quoted(part) for part in map(str, path))


def not_one_of(value: Any, allowed: Sequence[Any]) -> str:
    """The message for a value that is not one of the allowed ones."""
    message = f"must be {either(map(shown, allowed))}, not {shown(value)}"
    if isinstance(value, str):
        close = closest(value, [choice for choice in allowed if isinstance(choice, str)])
        if close is not None:
            message += f", did you mean {shown(close)}?"
    return message
