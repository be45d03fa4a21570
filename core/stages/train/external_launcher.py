"""A command that another launcher (torchrun, mpirun …) started once per process: which process this is."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from attrs import frozen

from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.runs.stage import Run

# A launcher ends all of its processes once one has failed; the others wait this long, so that the first can say why.
_LINGER_SECONDS = 10.0


@frozen(kw_only=True)
class LauncherProcess:
    """One process of a launcher's, by its environment variables.

    Attributes:
        rank: its number, from 0.
        size: number of processes, more than one.
        on_machine: number of processes on this machine; None if the launcher does not say.
        address: of the first process's machine, as the others reach it.
        port: at which the training's processes connect; it also identifies this launch.
    """

    rank: int
    size: int
    on_machine: int | None
    address: str
    port: str

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"


def launcher_process() -> LauncherProcess | None:
    """The process that RANK, WORLD_SIZE and similar variables describe; None if it is the only one.

    Raises:
        UsageError: they are not integers, or the rank is not below the world size.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if not rank or not size or size == "1":
        return None
    on_machine = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or None
    if not all(number.isdecimal() for number in (rank, size, on_machine or size)) or int(rank) >= int(size):
        raise UsageError(
            f"RANK is {rank!r}, WORLD_SIZE {size!r} and LOCAL_WORLD_SIZE {on_machine!r}: expected integers, and RANK "
            "below WORLD_SIZE; unset them if no launcher started this command"
        )
    return LauncherProcess(
        rank=int(rank),
        size=int(size),
        on_machine=on_machine and int(on_machine),
        # The trainer's defaults.
        address=os.environ.get("MASTER_ADDR") or "127.0.0.1",
        port=os.environ.get("MASTER_PORT") or "29500",
    )


def check_training_only(here: LauncherProcess, runs: Sequence[Run], only: str | None) -> None:
    """Refuse everything except the training of one run by a trainer that works in several processes.

    Args:
        here: this process.
        runs: the requested runs.
        only: the requested stage; None for all stages.

    Raises:
        UsageError: something else was requested.
    """
    if only != "train":
        raise refusal(
            here, "run", "start only `modelwright train RUN.toml` with the launcher, and the other stages without it"
        )
    if len(runs) > 1:
        raise refusal(here, f"{len(runs)} variants", "choose one with --variant")
    if not runs[0].has("train"):
        raise UsageError(f"{runs[0].config.name} has nothing to train: it sets train = false")
    trainer = runs[0].config.training.trainer
    if runs[0].plugins.get(TrainerSpec, trainer).launcher == "python":
        raise refusal(
            here,
            f"a training with {trainer!r}, which runs in one process,",
            'set [train] trainer = "deepspeed", or start the command without the launcher',
        )


def refusal(here: LauncherProcess, what: str, remedy: str) -> UsageError:
    """The error for anything that a launcher's processes cannot share."""
    return UsageError(
        f"a launcher started this command {here.size} times (WORLD_SIZE), and {what} cannot be split among these "
        f"processes: {remedy}; unset RANK and WORLD_SIZE if no launcher started it"
    )


def leave_to_the_first(here: LauncherProcess, error: ModelwrightError) -> int:
    """Let only the first process report an error that all of them have; returns the exit code of the others.

    Raises:
        ModelwrightError: `error`, in the first process.
    """
    if here.rank == 0:
        raise error
    time.sleep(_LINGER_SECONDS)
    return error.exit_code
