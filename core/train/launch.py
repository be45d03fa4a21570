"""How a training job's processes are started."""

from __future__ import annotations

from modelwright.core.processes import worker_command
from modelwright.core.workspace import RunFolder


def training_command(folder: RunFolder) -> list[str]:
    """The command line that trains in one process; the configuration admits no trainer that needs another."""
    return worker_command("modelwright.core.train.worker", folder)
