"""How a training job's processes are started: on this machine, or on the nodes of an allocation of Slurm's."""

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
from modelwright.core.stages.train.external_launcher import Launched

MODULE = "modelwright.core.stages.train.worker"
# Where the first process listens for those of other nodes: by the job's id, below the ports that systems give out.
_PORTS = range(12000, 32000)
# What srun says of the first task that did not end well.
_FAILED = re.compile(r"^srun: error: (?P<node>[^:\s]+): task [^:]+: (?P<how>[^\d\n]*(?P<code>\d+)?.*)$", re.MULTILINE)
# What is said of a node on which a process did not end by itself.
KILLED = "a process was ended by"
# So many times a job may be stopped before its training has done a step.
_ATTEMPTS = 3
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


def training_launch(
    folder: RunFolder, launcher: str, processes: int | Literal["auto"], cluster: ClusterConfig | None = None
) -> Launch:
    """How the processes of a training are started: in a job of Slurm's as `[cluster]` says, else on this machine.

    Args:
        folder: the run's.
        launcher: of the trainer, "python" or "deepspeed".
        processes: how many on each machine; "auto" is one for each GPU.
        cluster: `[cluster]`, where there is one.

    Raises:
        UsageError: there are fewer GPUs than processes, or fewer nodes than `[cluster]` asks for.
        ModelwrightError: Slurm does not tell about the nodes.
    """
    if launcher == "python":
        return Launch(command=worker_command(MODULE, folder), environment=dict.fromkeys(_LAUNCHED))
    job = allocation()
    cluster = cluster if job else None
    gpus = gpu_count()
    if job and cluster and cluster.nodes > 1:
        # This process may be on a machine that has none, as in a shell that salloc gave.
        gpus = gpus or cluster.gpus_per_node or 0
    count = _processes(processes, gpus, cluster)
    environment = _environment(count, gpus, job)
    if job and cluster and cluster.nodes > 1:
        return Launch(command=_on_nodes(folder, count, cluster, job), environment=environment)
    return Launch(
        command=[
            *(sys.executable, "-m", "deepspeed.launcher.runner"),
            # A list of hosts that lies in the launcher's usual place is another program's.
            *("--hostfile", os.devnull),
            *("--num_gpus", str(count), "--master_addr", "127.0.0.1", "--master_port", str(_free_port())),
            *_worker(folder),
        ],
        environment=environment,
    )


def launched_process(folder: RunFolder, here: Launched) -> Launch:
    """The one process of a training that this one starts where a launcher started this program several times.

    What the launcher said of this process (RANK and its like) stays in the environment.
    """
    environment = _environment(here.on_machine or here.size, gpu_count(), allocation())
    return Launch(command=worker_command(MODULE, folder), environment=environment)


def _environment(count: int, gpus: int, job: Allocation | None) -> dict[str, str | None]:
    """What each of `count` processes on a machine finds in its environment."""
    environment: dict[str, str | None] = {"PYTHONSAFEPATH": "1"}  # as -P does for other workers
    if not gpus:
        # Processes with as many threads each as there are cores spin one another to a crawl.
        threads = max(1, ((job.cpus if job else None) or os.cpu_count() or 1) // count)
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    return environment


def _worker(folder: RunFolder) -> list[str]:
    return ["--no_local_rank", "--module", MODULE, str(folder.path), folder.name]


def _processes(processes: int | Literal["auto"], gpus: int, cluster: ClusterConfig | None) -> int:
    """How many on each machine; those of `[cluster]` go before those of `[train]`.

    Raises:
        UsageError: there are fewer GPUs.
    """
    key = "[train] processes"
    if cluster and cluster.processes:
        processes, key = cluster.processes, "[cluster] processes_per_node"
    count = max(1, gpus) if processes == "auto" else processes
    if gpus and count > gpus:
        raise UsageError(
            f"{key} is {count}, and this machine has {gpus} GPU{'s' if gpus > 1 else ''}: set it to {gpus} or less"
            + (', or to "auto"' if key.startswith("[train]") else "")
        )
    return count


def _on_nodes(folder: RunFolder, count: int, cluster: ClusterConfig, job: Allocation) -> list[str]:
    """The launcher once on each node, by srun: it needs neither ssh nor MPI.

    srun gives its standard input to every task, so that a runner that is gone ends the processes of all nodes; and it
    ends them all when one node's launcher fails.
    """
    if job.nodes < cluster.nodes:
        raise UsageError(f"[cluster] nodes is {cluster.nodes}, and job {job.job} has {job.nodes}: submit the run anew")
    names = _scontrol("show", "hostnames", job.node_list).split()[: cluster.nodes]
    hosts = folder.stage("train") / "hosts"
    files.write_text(hosts, "".join(f"{name} slots={count}\n" for name in names))
    launcher = [
        *shlex.split(cluster.container or ""),
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hosts), "--no_ssh"),
        *("--master_addr", _address(names[0]), "--master_port", str(_PORTS.start + int(job.own) % len(_PORTS))),
    ]
    return [
        *("srun", f"--nodes={cluster.nodes}", f"--ntasks={cluster.nodes}", "--ntasks-per-node=1"),
        # It does not take this over from the job by itself.
        *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
        *("--kill-on-bad-exit=1", "bash", "-c"),
        f'exec {shlex.join(launcher)} --node_rank "$SLURM_NODEID" {shlex.join(_worker(folder))}',
    ]


def _address(node: str) -> str:
    """Where a node is reached from the others."""
    told = _scontrol("--oneliner", "show", "node", node)
    addresses = [word.removeprefix("NodeAddr=") for word in told.split() if word.startswith("NodeAddr=")]
    return addresses[0] if addresses else node


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError(
            "there is no scontrol on the path: a training on several nodes needs Slurm's commands, in a container, too"
        ) from None
    if done.returncode != 0:
        raise ModelwrightError(f"Slurm does not tell about the nodes: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def node_that_failed(log: Path, begin: int) -> str | None:
    """Whose launcher failed first, of several nodes, as srun told in a log from a place on; None where none did."""
    with log.open("rb") as file:
        file.seek(begin)
        told = _FAILED.search(file.read().decode("utf-8", "replace"))
    if told is None:
        return None
    node, how, code = told["node"], told["how"], int(told["code"] or 0)
    # Python and DeepSpeed's launcher end with minus the number of the signal that ended a process.
    if code > 256 - signal.NSIG:
        how = f"{KILLED} {signal.Signals(256 - code).name}"
    return f"node {node} failed first ({how[0].lower()}{how[1:]}), and the others were ended"


def has_not_advanced(folder: RunFolder) -> str | None:
    """Why it is of no use to queue a job again: several in a row were stopped before a single step was done."""
    if allocation() is None:
        return None
    steps: dict[str, int] = {}
    for event in EventTail(folder.events).poll():
        if event.stage == "train" and event.role == WORKER:
            steps[event.writer] = steps.get(event.writer, 0) + (event.kind == "step")
    last = list(steps.values())[-_ATTEMPTS:]
    if len(last) < _ATTEMPTS or any(last):
        return None
    return f"{folder.name}: {_ATTEMPTS} jobs in a row were stopped before one step was done: raise [cluster] time"


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
