"""CPU time of the commands that a person waits for, and an empty interpreter beside them.

python benchmarks/cli.py
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 15
COMMAND = str(Path(sys.executable).parent / "modelwright")
CASES = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "modelwright --help": [COMMAND, "--help"],
    "modelwright plugins list": [COMMAND, "plugins", "list"],
}


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, command in CASES.items():
            times[name].append(cpu_seconds(command))
    for name, values in times.items():
        median, spread = statistics.median(values), f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:28} {median:.3f} s CPU (median of {ROUNDS}, {spread})")


if __name__ == "__main__":
    main()
