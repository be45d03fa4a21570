"""What the processes of a stage leave behind for their runner: what came of it, or why it failed.

status/
├── STAGE.json      the outputs, or that the stage was stopped; the first process writes it
└── STAGE.failed    why it failed; the first to fail of several processes writes it, and no other can any more

It is this that carries the result, not the exit code: a launcher between a process and its runner may lose that.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.runs.folder import RunFolder

# Bytes reserved up front for the failure message, so that it can be written even when the disk is full.
_RESERVED = 8192
# Longest error message in characters, each of at most four bytes.
_LONGEST = 1500


@frozen
class Status:
    """What came of a stage.

    Attributes:
        folder: the run's.
        stage: the stage's name.
    """

    folder: RunFolder
    stage: str

    @property
    def _result(self) -> Path:
        return self.folder.path / "status" / f"{self.stage}.json"

    @property
    def _failure(self) -> Path:
        return self.folder.path / "status" / f"{self.stage}.failed"

    def clear(self) -> None:
        """Forget what was left before; done before the processes are started."""
        self._result.unlink(missing_ok=True)
        self._failure.unlink(missing_ok=True)
        files.remove_temporaries(self._result.parent)

    def read(self) -> Mapping[str, Any] | None:
        """What was left: a state ("done", "stopped" or "failed") and what belongs to it; None where nothing was."""
        left: Mapping[str, Any] | None = files.read_json(self._failure) or files.read_json(self._result)
        return left

    def has_failed(self) -> bool:
        """Whether one of the processes has."""
        return self._failure.exists()

    def done(self, outputs: Mapping[str, Any]) -> None:
        """Leave the stage's outputs."""
        files.write_json(self._result, {"state": "done", "outputs": dict(outputs)})

    def stopped(self, error: str) -> None:
        """Leave that the stage was stopped on request."""
        files.write_json(self._result, {"state": "stopped", "error": error})

    @contextlib.contextmanager
    def room_for_failure(self) -> Iterator[Failure]:
        """Reserve space for a failure message, so that it can be written even when the disk is full."""
        self._failure.parent.mkdir(parents=True, exist_ok=True)
        reserved = files.temporary_name(self._failure)
        reserved.write_bytes(b" " * _RESERVED)
        files.sync_file(reserved)
        try:
            yield Failure(reserved, self._failure)
        finally:
            reserved.unlink(missing_ok=True)


@frozen
class Failure:
    """Where a process reports that it failed."""

    _reserved: Path
    _place: Path

    def tell(self, error: str, *, unexpected: bool = False) -> None:
        """Leave why, unless another process has left its reason before.

        Args:
            error: what to tell the user.
            unexpected: nobody foresaw it: the process's log says more.
        """
        message = json.dumps(
            {"state": "failed", "error": error[:_LONGEST], "unexpected": unexpected}, ensure_ascii=False
        )
        with self._reserved.open("r+b") as file:
            file.write(message.encode("utf-8", "replace"))
            file.truncate()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            # A second name appears with all that it names, and only once.
            os.link(self._reserved, self._place)
