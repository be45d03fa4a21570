"""Slurm's commands, and their errors in one clear line. Nothing else here calls them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from modelwright.core.api.errors import ModelwrightError, UsageError

# Seconds. The commands themselves ask a controller that does not answer for a minute.
PATIENCE = 100.0

# The fields of squeue and their widths: it cuts columns and never stretches them.
_COLUMNS = {
    "JobArrayID": 40,
    "State": 20,
    "Reason": 50,
    "RestartCnt": 8,
    "TimeUsed": 16,
    "exit_code": 12,
    "NodeList": 400,
}

_ACCOUNTED = ("JobID", "State", "Reason", "Elapsed", "ExitCode", "NodeList")

ENDED = frozenset(
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"]
)
# A node's GPUs among its generic resources, such as "gpu:a100:4(S:0-1),nic:2".
_GPUS = re.compile(r"\bgpu:((?:[^:,(]+:)?\d+)")
# States of nodes that will not work for now.
_AWAY = re.compile(r"down|drain|drng|fail|maint|no_respond|\*$|boot|reboot|power")


@frozen(kw_only=True)
class QueuedJob:
    """A job, or a task of an array, as Slurm knows it.

    Attributes:
        job: its id; `ARRAY_TASK` for a task.
        state: in Slurm's words, such as "PENDING".
        reason: why it is so; None where Slurm gives none.
        restarts: how often it was queued again; None where Slurm does not say.
        elapsed: how long it runs or ran, as Slurm writes it.
        nodes: where.
        exit_code: of its script; None where it has not ended by itself, or never began.
    """

    job: str
    state: str
    reason: str | None
    restarts: int | None
    elapsed: str
    nodes: str
    exit_code: int | None


def installed() -> bool:
    """Whether Slurm's commands are there."""
    return shutil.which("sbatch") is not None


def need() -> None:
    """Check that Slurm's commands are installed.

    Raises:
        UsageError: they are not.
    """
    if not installed():
        raise UsageError(
            "sbatch is not on the path: submit from a machine of the cluster, or write the scripts with --print"
        )


def test(script: str) -> str | None:
    """Ask Slurm whether it would ever run a script, given as text; what it says against it, None where it would."""
    done = _run(["sbatch", "--test-only"], script)
    return None if done.returncode == 0 else _words(done)


def submit(script: Path, after: Sequence[str]) -> str:
    """Queue a script to run when the jobs `after` have ended well; if one of them does not, it never runs.

    Returns:
        The job's id.

    Raises:
        ModelwrightError: Slurm refuses it.
    """
    chain = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    done = _run(["sbatch", "--parsable", *chain, str(script)])
    if done.returncode != 0:
        raise ModelwrightError(_words(done))
    return done.stdout.strip().partition(";")[0]


def queued(jobs: Sequence[str]) -> dict[str, QueuedJob]:
    """What Slurm knows of these jobs (of an array: of its tasks), by id; it forgets a job minutes after its end.

    Raises:
        ModelwrightError: it does not answer.
    """
    if not jobs:
        return {}
    columns = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
    done = _run(["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", f"--Format={columns}"])
    if done.returncode != 0:
        if "Invalid job id" in done.stderr:
            return {}
        raise ModelwrightError(f"Slurm does not answer: {_words(done)}")
    return {job.job: job for job in map(_queued, done.stdout.splitlines()) if job}


def _queued(line: str) -> QueuedJob | None:
    values, at = [], 0
    for width in _COLUMNS.values():
        values.append(line[at : at + width].strip())
        at += width
    if not values[0]:
        return None
    job, state, reason, restarts, elapsed, status, nodes = values
    code = int(status) if status.isdigit() and _by_itself(state) and nodes else None
    return QueuedJob(
        job=job,
        state=state,
        reason=None if reason in ("", "None") else reason,
        restarts=int(restarts) if restarts.isdigit() else None,
        elapsed=elapsed,
        nodes=nodes,
        exit_code=None if code is None else code >> 8 or (128 + (code & 127) if code else 0),
    )


def _by_itself(state: str) -> bool:
    return state in ENDED - {"CANCELLED", "PREEMPTED"}


def accounted(jobs: Sequence[str]) -> dict[str, QueuedJob]:
    """As `queued`, from the accounting database, which does not forget; nothing where there is none."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    options = ["--noheader", "--parsable2", "--allocations", f"--format={','.join(_ACCOUNTED)}"]
    done = _run(["sacct", *options, f"--jobs={','.join(jobs)}"])
    found = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        job, state, reason, elapsed, status, nodes = line.split("|")
        state = state.partition(" ")[0]  # "CANCELLED by 1000"
        code, _, number = status.partition(":")
        began = nodes not in ("", "None assigned")
        found[job] = QueuedJob(
            job=job,
            state=state,
            reason=None if reason in ("", "None") else reason,
            restarts=None,
            elapsed=elapsed,
            nodes=nodes if began else "",
            exit_code=(128 + int(number) if int(number) else int(code)) if began and _by_itself(state) else None,
        )
    return found


def cancel(jobs: Sequence[str]) -> None:
    """End jobs; those that have ended stay as they are.

    Raises:
        ModelwrightError: Slurm refuses.
    """
    done = _run(["scancel", *jobs])
    if done.returncode != 0:
        raise ModelwrightError(f"Slurm does not cancel {', '.join(jobs)}: {_words(done)}")


@frozen(kw_only=True)
class Partition:
    """What a partition has.

    Attributes:
        nodes: number of nodes.
        away: how many of them are away for now.
        gpus: the GPUs of its kinds of nodes, such as `"a100:4"`, or `"4"` without a type; empty for nodes with none.
    """

    nodes: int
    away: int
    gpus: Sequence[str]


def partition(name: str | None) -> Partition | None:
    """A partition's nodes, of the default one where none is named; None where it is not known."""
    done = _run(["sinfo", "--noheader", "--format=%R|%P|%D|%T|%G", *([f"--partition={name}"] if name else [])])
    total = away = 0
    gpus: dict[str, None] = {}
    for line in done.stdout.splitlines():
        _, full, count, state, resources = line.split("|")
        if name is None and not full.endswith("*"):
            continue
        total += int(count)
        away += int(count) if _AWAY.search(state) else 0
        gpus |= dict.fromkeys(_GPUS.findall(resources) or [""])
    return Partition(nodes=total, away=away, gpus=list(gpus)) if total else None


def partitions() -> list[str]:
    """The names of the partitions that there are."""
    done = _run(["sinfo", "--noheader", "--format=%R"])
    return sorted(set(done.stdout.split()))


def _run(command: Sequence[str], script: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=script, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        raise UsageError(f"{command[0]} is not on the path: run this on a machine of the cluster") from None
    except subprocess.TimeoutExpired:
        raise ModelwrightError(f"Slurm does not answer: {command[0]} took longer than {PATIENCE:.0f} s") from None


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said against something, as a clause; the last line is the one that decides."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip() for line in _lines(done.stderr)]
    lines = list(dict.fromkeys(line for line in lines if not line.startswith("Try ")))
    return "; ".join(lines[-2:]) or f"it ended with exit code {done.returncode}"


def _lines(text: str) -> Iterable[str]:
    return (line for line in text.splitlines() if line.strip())
