"""The memory that this process may use: the machine's, within the limits of its control groups.

A job of Slurm, a container and a systemd unit are control groups, often several levels deep, and the kernel kills what
exceeds the limit of any of them. `/sys/fs/cgroup` itself is the root, which has no limit; the process's own group is in
/proc/self/cgroup (cgroups(7)), and where its files are is in /proc/self/mountinfo (proc(5)).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from attrs import frozen


@frozen(kw_only=True)
class MachineMemory:
    """Memory of this machine for this process, in bytes.

    Attributes:
        machine: what is built in.
        usable: at most; less than `machine` in a control group with a limit.
        free: of that, now.
    """

    machine: int
    usable: int
    free: int


@frozen
class _Version:
    """How a version of control groups names its files, and the line of cached files, which are freed on demand."""

    limit: str
    used: str
    cached: str


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


def machine_memory(root: Path = Path("/")) -> MachineMemory:
    """The memory of this machine for this process.

    Args:
        root: where /proc and /sys are.
    """
    facts = _numbers(root / "proc/meminfo")
    built_in = 1024 * facts.get("MemTotal:", 0) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable, free = built_in, 1024 * facts.get("MemAvailable:", 0) or built_in
    for group, version in _groups(root):
        limit = _number(group / version.limit)
        if limit is None:
            continue
        used = (_number(group / version.used) or 0) - _numbers(group / "memory.stat").get(version.cached, 0)
        usable, free = min(usable, limit), min(free, max(0, limit - max(0, used)))
    return MachineMemory(machine=built_in, usable=usable, free=free)


def _groups(root: Path) -> Iterator[tuple[Path, _Version]]:
    """The folders of this process's control groups, from its own up to the highest that can be seen."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = _V2 if not controllers else _V1
        if controllers and "memory" not in controllers.split(","):
            continue
        for seen, of_version, top in mounts:
            if of_version is version:
                yield from ((group, version) for group in _upwards(root / top.lstrip("/"), seen, path))


def _upwards(top: Path, seen: str, path: str) -> Iterator[Path]:
    """A group's folder and those above it, up to the mount point `top`, which shows the group `seen`."""
    # In a container, the mount may show the container's group alone, and the path may be the host's; "/.." is above it.
    own = PurePosixPath(path)
    inside = own.relative_to(seen) if own.is_relative_to(seen) and ".." not in own.parts else PurePosixPath()
    folder = top / inside
    while not folder.is_dir() and folder != top:
        folder = folder.parent
    yield folder
    while folder != top:
        folder = folder.parent
        yield folder


def _mounts(root: Path) -> Iterator[tuple[str, _Version, str]]:
    """Mounts of control groups with memory: the group that is shown, the version, and where."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, *source = after.split()
        _, _, _, seen, place, *_ = before.split()
        if kind == "cgroup2":
            yield seen, _V2, place
        elif kind == "cgroup" and source and "memory" in source[-1].split(","):
            yield seen, _V1, place


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # there is no such file on this system
        return []


def _number(path: Path) -> int | None:
    """The number in a file; None if there is none, or it says "max"."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _numbers(path: Path) -> dict[str, int]:
    """The lines `NAME NUMBER …` of a file."""
    pairs = (line.split()[:2] for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
