"""The errors that a person sees: one clear line each, with the exit code of the command that meets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ModelwrightError(Exception):
    """The work failed; its one-line message says what failed, where, what was expected and what to do."""

    exit_code: ClassVar[int] = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """What the command line prints: one line, or several for errors that collect others."""
        return (f"error: {self}",)


class UsageError(ModelwrightError):
    """The command line or the configuration is wrong; nothing was started."""

    exit_code: ClassVar[int] = 2


class SeveralErrors(UsageError):  # noqa: N818 - the plural says what it is
    """Several errors at once, one line each."""

    def __init__(self, errors: Sequence[ModelwrightError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(map(str, errors)))

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of all the errors."""
        return tuple(line for error in self.errors for line in error.lines)


def raise_errors(errors: Sequence[ModelwrightError]) -> None:
    """Raise the only error as it is, several as `SeveralErrors`, and nothing if there are none."""
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralErrors(errors)


class MissingDependencyError(UsageError):
    """A required package is not installed; the message says what to install."""


class StopRequested(ModelwrightError):  # noqa: N818 - not an error: the run stopped on request
    """The work stopped on request and can be resumed."""

    exit_code: ClassVar[int] = 75


class RowError(Exception):
    """A format cannot read this row; the reason goes to `rejected.jsonl` with the row's file and line."""


class RegistryError(ModelwrightError):
    """A registry refused or failed."""


class ModelNotFoundError(RegistryError):
    """No such model, version or alias in the registry."""


class AliasConflictError(RegistryError):
    """The alias was moved after the caller read it."""
