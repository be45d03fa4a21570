"""How a training job's processes are started."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Literal

from attrs import field, frozen

from modelwright.core.api.errors import UsageError
from modelwright.core.processes import worker_command
from modelwright.core.workspace import RunFolder

MODULE = "modelwright.core.train.worker"
# What a launcher tells its processes; a process that no launcher started must not take someone else's for its own.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@frozen(kw_only=True)
class Launch:
    """A command line that trains, and what it finds in its environment beside the runner's own.

    Attributes:
        command: the program and its arguments.
        environment: variables; None takes one away.
    """

    command: list[str]
    environment: dict[str, str | None] = field(factory=dict)


def training_launch(folder: RunFolder, launcher: str, processes: int | Literal["auto"]) -> Launch:
    """How the processes of a training are started on this machine.

    Args:
        folder: the run's.
        launcher: of the trainer, "python" or "deepspeed".
        processes: how many; "auto" is one for each GPU.

    Raises:
        UsageError: there are fewer GPUs than processes.
    """
    if launcher == "python":
        return Launch(command=worker_command(MODULE, folder), environment=dict.fromkeys(_LAUNCHED))
    gpus = gpu_count()
    count = max(1, gpus) if processes == "auto" else processes
    if gpus and count > gpus:
        raise UsageError(
            f"[train] processes is {count}, and this machine has {gpus} GPU{'s' if gpus > 1 else ''}: set it to {gpus} "
            'or less, or to "auto"'
        )
    environment: dict[str, str | None] = {"PYTHONSAFEPATH": "1"}  # as -P does for other workers
    if not gpus:
        # Processes with as many threads each as there are cores spin one another to a crawl.
        threads = max(1, (os.cpu_count() or 1) // count)
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    return Launch(
        command=[
            *(sys.executable, "-m", "deepspeed.launcher.runner"),
            # A list of hosts that lies in the launcher's usual place is another program's.
            *("--hostfile", os.devnull),
            *("--num_gpus", str(count), "--master_addr", "127.0.0.1", "--master_port", str(_free_port())),
            *("--no_local_rank", "--module", MODULE, str(folder.path), folder.name),
        ],
        environment=environment,
    )


def gpu_count() -> int:
    """How many GPUs of NVIDIA's this process may use, without asking torch."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    there = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    chosen = [name for name in visible.split(",") if name.strip()]
    return min(there, len(chosen) if "-1" not in chosen else chosen.index("-1"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
