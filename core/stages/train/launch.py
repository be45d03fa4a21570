"""How the processes of a training are started: on this machine, or on the nodes of a Slurm allocation."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

from attrs import field, frozen

from modelwright.core.api import files
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.config.cluster import ClusterConfig
from modelwright.core.runs.allocation import Allocation, allocation
from modelwright.core.runs.events import WORKER, EventTail
from modelwright.core.runs.folder import RunFolder
from modelwright.core.runs.supervisor import worker_command
from modelwright.core.stages.train.external_launcher import LauncherProcess

MODULE = "modelwright.core.stages.train.worker"
# Ports at which the first process listens for other nodes, by the job's id; below the ports that systems assign.
_PORTS = range(12000, 32000)
# How srun reports the first task that failed.
_FAILED = re.compile(r"^srun: error: (?P<node>[^:\s]+): task [^:]+: (?P<how>[^\d\n]*(?P<code>\d+)?.*)$", re.MULTILINE)
# The report about a node on which a process was killed.
KILLED = "a process was killed by"
# A training is not queued again after this many jobs in a row without a step.
_ATTEMPTS = 3
# Variables that a launcher sets for its processes; a process that no launcher started must not inherit them.
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@frozen(kw_only=True)
class Launch:
    """A command line that trains, and its changes to the runner's environment.

    Attributes:
        command: the program and its arguments.
        environment: variables to set; None removes one.
    """

    command: list[str]
    environment: dict[str, str | None] = field(factory=dict)


def training_launch(
    folder: RunFolder, launcher: str, processes: int | Literal["auto"], cluster: ClusterConfig | None = None
) -> Launch:
    """How to start the processes of a training: in a Slurm job as `[cluster]` says, else on this machine.

    Args:
        folder: of the run.
        launcher: of the trainer, "python" or "deepspeed".
        processes: number on each machine; "auto" is one per GPU.
        cluster: `[cluster]`, if there is one.

    Raises:
        UsageError: there are fewer GPUs than processes, or fewer nodes than `[cluster]` requests.
        ModelwrightError: Slurm cannot list the job's nodes.
    """
    if launcher == "python":
        return Launch(command=worker_command(MODULE, folder), environment=dict.fromkeys(_OF_LAUNCHERS))
    job = allocation()
    cluster = cluster if job else None
    gpus = gpu_count()
    if job and cluster and cluster.nodes > 1:
        # This process may be on a machine without GPUs, as in a shell started by salloc.
        gpus = gpus or cluster.of("train").gpus
    count = _processes(processes, gpus, cluster)
    environment = _environment(count, gpus, job)
    if job and cluster and cluster.nodes > 1:
        return Launch(command=_on_nodes(folder, count, cluster, job), environment=environment)
    return Launch(
        command=[
            *(sys.executable, "-m", "deepspeed.launcher.runner"),
            # A list of hosts in the launcher's default place belongs to another program.
            *("--hostfile", os.devnull),
            *("--num_gpus", str(count), "--master_addr", "127.0.0.1", "--master_port", str(free_port())),
            *_worker(folder),
        ],
        environment=environment,
    )


def launch_of_one(folder: RunFolder, here: LauncherProcess) -> Launch:
    """How this process starts its own process of a training, if a launcher started this command several times.

    The launcher's variables (RANK and similar) stay in the environment.
    """
    environment = _environment(here.on_machine or here.size, gpu_count(), allocation())
    return Launch(command=worker_command(MODULE, folder), environment=environment)


def _environment(count: int, gpus: int, job: Allocation | None) -> dict[str, str | None]:
    """The environment of each of `count` processes on a machine."""
    environment: dict[str, str | None] = {"PYTHONSAFEPATH": "1"}  # as -P does for other workers
    if not gpus:
        # If each process has as many threads as there are cores, they slow each other down to a crawl.
        threads = max(1, ((job.cpus if job else None) or os.cpu_count() or 1) // count)
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    return environment


def _worker(folder: RunFolder) -> list[str]:
    return ["--no_local_rank", "--module", MODULE, str(folder.path), folder.name]


def _processes(processes: int | Literal["auto"], gpus: int, cluster: ClusterConfig | None) -> int:
    """The number of processes on each machine; `[cluster]` takes precedence over `[train]`.

    Raises:
        UsageError: there are fewer GPUs.
    """
    key = "[train] processes"
    if cluster and cluster.processes:
        processes, key = cluster.processes, "[cluster] processes_per_node"
    count = max(1, gpus) if processes == "auto" else processes
    if gpus and count > gpus:
        raise UsageError(
            f"{key} is {count}, but this machine has {gpus} GPU{'s' if gpus > 1 else ''}: set it to {gpus} or less"
            + (', or to "auto"' if key.startswith("[train]") else "")
        )
    return count


def _on_nodes(folder: RunFolder, count: int, cluster: ClusterConfig, job: Allocation) -> list[str]:
    """Start the launcher once on each node with srun, which needs neither ssh nor MPI.

    srun passes its standard input to every task, so that the processes on all nodes end with the runner; and it ends
    them all when the launcher of one node fails.
    """
    if job.nodes < cluster.nodes:
        raise UsageError(f"[cluster] nodes is {cluster.nodes}, but job {job.job} has {job.nodes}: submit the run again")
    names = _scontrol("show", "hostnames", job.node_list).split()[: cluster.nodes]
    hosts = folder.stage("train") / "hosts"
    files.write_text(hosts, "".join(f"{name} slots={count}\n" for name in names))
    launcher = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"),
        *("--master_addr", _address(names[0]), "--master_port", str(_PORTS.start + int(job.own) % len(_PORTS))),
    ]
    return [
        *("srun", f"--nodes={cluster.nodes}", f"--ntasks={cluster.nodes}", "--ntasks-per-node=1"),
        # srun does not inherit this from the job.
        *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
        *("--kill-on-bad-exit=1", "bash", "-c"),
        f'exec {cluster.container or ""} {shlex.join(launcher)} --node_rank "$SLURM_NODEID" '
        + shlex.join(_worker(folder)),
    ]


def _address(node: str) -> str:
    """The address of a node for the other nodes."""
    record = _scontrol("--oneliner", "show", "node", node)
    addresses = [word.removeprefix("NodeAddr=") for word in record.split() if word.startswith("NodeAddr=")]
    return addresses[0] if addresses else node


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError(
            "scontrol is not on the PATH: a training on several nodes needs Slurm's commands, also inside a container"
        ) from None
    if done.returncode != 0:
        raise ModelwrightError(f"cannot look up this job's nodes: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def node_that_failed(log: Path, begin: int) -> str | None:
    """The node whose launcher failed first, by srun's messages in a log from byte `begin` on; None if none did."""
    with log.open("rb") as file:
        file.seek(begin)
        failed = _FAILED.search(file.read().decode("utf-8", "replace"))
    if failed is None:
        return None
    node, how, code = failed["node"], failed["how"], int(failed["code"] or 0)
    # Python and DeepSpeed's launcher exit with minus the number of the signal that killed a process.
    if code > 256 - signal.NSIG:
        how = f"{KILLED} {signal.Signals(256 - code).name}"
    return f"node {node} failed first ({how[0].lower()}{how[1:]}), and the others were stopped"


def has_not_advanced(folder: RunFolder) -> str | None:
    """Why a job should not be queued again: several in a row were stopped before a single step. Else None."""
    if allocation() is None:
        return None
    steps: dict[str, int] = {}
    for event in EventTail(folder.events).poll():
        if event.stage == "train" and event.role == WORKER:
            steps[event.writer] = steps.get(event.writer, 0) + (event.kind == "step")
    last = list(steps.values())[-_ATTEMPTS:]
    if len(last) < _ATTEMPTS or any(last):
        return None
    return f"{folder.name}: {_ATTEMPTS} jobs in a row were stopped before they finished a step: raise [cluster] time"


def gpu_count() -> int:
    """The number of NVIDIA GPUs that this process may use, found without torch."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    there = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    chosen = [name for name in visible.split(",") if name.strip()]
    return min(there, len(chosen) if "-1" not in chosen else chosen.index("-1"))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
