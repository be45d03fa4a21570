"""How a training job's processes are started."""

from __future__ import annotations

import sys
from typing import Literal

from modelwright.core.api.errors import UsageError
from modelwright.core.api.training import TrainSettings
from modelwright.core.workspace import RunFolder


def training_command(launcher: Literal["python", "deepspeed"], settings: TrainSettings, folder: RunFolder) -> list[str]:
    """The command line of a training worker.

    Raises:
        UsageError: the launcher cannot start that many processes.
    """
    if launcher == "deepspeed":
        raise UsageError("[train] trainer: the deepspeed launcher is not supported by this version")
    if settings.processes not in (1, "auto"):
        raise UsageError(f"[train] processes = {settings.processes}: trainer {settings.trainer!r} runs in one process")
    return [sys.executable, "-m", "modelwright.core.train.worker", str(folder.path)]
