"""What another launcher (torchrun, mpirun …) says of this process, where one started this program several times."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from attrs import frozen

from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.runs.stage import Run

# A launcher ends all of its processes as soon as one has failed: so long the first one has to say why.
_LINGER_SECONDS = 10.0


@frozen(kw_only=True)
class Launched:
    """Which of a launcher's processes this is.

    Attributes:
        rank: its number; the first one is 0.
        size: how many there are, more than one.
        on_machine: how many of them are on this machine; None where nothing says so.
        address: of the first one's machine, as the others reach it.
        port: which the training's processes will meet at; it tells this launch from others.
    """

    rank: int
    size: int
    on_machine: int | None
    address: str
    port: str

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"


def launched() -> Launched | None:
    """What RANK, WORLD_SIZE and their like say; None where there is but this process.

    Raises:
        UsageError: they are no numbers, or do not fit together.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if not rank or not size or size == "1":
        return None
    on_machine = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or None
    if not all(number.isdecimal() for number in (rank, size, on_machine or size)) or int(rank) >= int(size):
        raise UsageError(
            f"RANK is {rank!r}, WORLD_SIZE {size!r}, LOCAL_WORLD_SIZE {on_machine!r}: expected how many processes a "
            "launcher started, and a number below that; unset them where no launcher started this command"
        )
    return Launched(
        rank=int(rank),
        size=int(size),
        on_machine=on_machine and int(on_machine),
        # What the trainer takes where nothing is said.
        address=os.environ.get("MASTER_ADDR") or "127.0.0.1",
        port=os.environ.get("MASTER_PORT") or "29500",
    )


def check_launched(here: Launched, runs: Sequence[Run], only: str | None) -> None:
    """Refuse all but the training of one run by a trainer that works in several processes.

    Args:
        here: which process this is.
        runs: those that were asked for.
        only: the one stage that was asked for; None for all.

    Raises:
        UsageError: something else was asked for.
    """
    if only != "train":
        raise refusal(here, "run", "call `modelwright train RUN.toml` by the launcher, and the other stages without it")
    if len(runs) > 1:
        raise refusal(here, f"{len(runs)} variants", "choose one with --variant")
    config = runs[0].config
    if runs[0].plugins.get(TrainerSpec, config.train.trainer).launcher == "python":
        raise refusal(
            here,
            f"a training by {config.train.trainer!r}, which is one process,",
            'set [train] trainer = "deepspeed", or call the command without the launcher',
        )


def refusal(here: Launched, what: str, remedy: str) -> UsageError:
    """The error of who asks a launcher's processes for more than one training."""
    return UsageError(
        f"a launcher started this command {here.size} times (WORLD_SIZE), and {what} cannot be shared among them: "
        f"{remedy}; unset RANK and WORLD_SIZE where no launcher did"
    )


def leave_to_the_first(here: Launched, error: ModelwrightError) -> int:
    """Let the first process alone tell of an error that all of them meet; gives the exit code of the others.

    Raises:
        ModelwrightError: `error`, in the first one.
    """
    if here.rank == 0:
        raise error
    time.sleep(_LINGER_SECONDS)
    return error.exit_code
