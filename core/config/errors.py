"""What is wrong with a configuration: found by key path, told by file and line, all of it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from modelwright.core.api.errors import UsageError
from modelwright.core.config.words import KeyPath

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Finding = tuple[KeyPath, str]


class Invalid(Exception):  # noqa: N818 - it carries findings up to the reader and is nobody's last word
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
    """The same findings, seen from the table or array that holds the value under `key`."""
    return [((key, *path), message) for path, message in findings]


@frozen(kw_only=True)
class Problem:
    """One line of a `ConfigError`.

    Attributes:
        source: the file as the caller named it, or "--set".
        line: in the file, from 1; None where no line can be named.
        column: from 1, for syntax errors.
        table: the table's header without brackets; empty for the file's top, and for `--set`.
        key: the key in that table; for `--set` the whole dotted path.
        message: what is meant.
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
