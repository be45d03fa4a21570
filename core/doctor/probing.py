"""Asks other processes and programs: none of them can end this one, or keep it waiting for long."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

# A first import from a shared file system that is busy takes minutes.
IMPORT_WITHIN = 180.0
PROGRAM_WITHIN = 20.0


def imported(*what: str, within: float = IMPORT_WITHIN) -> dict[str, Any]:
    """What `probe` says of a package or of modules; `{"error": …}` where one cannot be imported.

    Args:
        what: see `probe.main`.
        within: seconds.
    """
    command = [sys.executable, "-P", "-m", "modelwright.core.doctor.probe", *what]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=within, check=False, env=os.environ
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing it takes more than {within:.0f} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return {"error": f"importing it ends Python ({_ending(done.returncode)}{f'; {said[-1]}' if said else ''})"}
    return answer


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def program(command: Sequence[str]) -> tuple[str, str | None]:
    """What a program prints, and why it failed; None where it did not.

    The program must be on the path; see `shutil.which`.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROGRAM_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} does not answer within {PROGRAM_WITHIN:.0f} s"
    except OSError as error:
        return "", f"{command[0]} cannot be started: {error.strerror}"
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        return output, None
    said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return output, said[-1] if said else f"{command[0]} ended with {_ending(done.returncode)}"


def version_line(name: str, *arguments: str) -> str | None:
    """The first line that a program on the path says of its version; None where there is no such program."""
    if shutil.which(name) is None:
        return None
    output, why = program([name, *arguments])
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[0] if lines else f"it does not work: {why}"
