"""The memory that a process may use: the least of the limits of its control groups, of both versions and all levels."""

import pytest

from modelwright.core.api.free_memory import MachineMemory, machine_memory

MB = 10**6
V1 = "35 31 0:32 {seen} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2 = "28 23 0:26 {seen} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
SLURM = "system.slice/slurmstepd.scope/job_7"


@pytest.fixture
def machine(tmp_path):
    """Writes a /proc and a /sys of 24 GB, of which 20 are free; gives what `machine_memory` says of them."""

    def look(groups, mounts, files):
        written = {
            "proc/meminfo": f"MemTotal:       {24 * 10**9 // 1024} kB\nMemAvailable:   {20 * 10**9 // 1024} kB\n",
            "proc/self/cgroup": groups,
            "proc/self/mountinfo": f"23 1 0:1 / / rw - ext4 /dev/vda rw\n{mounts}",
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        }
        for name, text in written.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        found = machine_memory(tmp_path)
        assert found.machine == 24 * 10**9 // 1024 * 1024
        return round(found.usable / MB), round(found.free / MB)

    return look


def v2(limit, used=0, cached=0):
    """The files of a group of version 2."""
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 1\ninactive_file {cached}\n",
    }


def v1(limit, used=0, cached=0):
    """The files of a group of version 1, whose figures with those of the groups inside begin with total_."""
    stat = f"inactive_file {cached}\ntotal_inactive_file {cached}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": stat}


def placed(folder, files):
    """These files in a folder."""
    return {f"{folder}/{name}".lstrip("/"): text for name, text in files.items()}


def test_a_job_of_slurm_may_use_the_least_that_a_level_above_it_allows(machine):
    """The limit is on the job, not on the step that the process is in, nor on the root."""
    files = placed(f"{SLURM}/step_0/user/task_0", v2("max", used=200 * MB))
    files |= placed(f"{SLURM}/step_0", v2(900 * MB)) | placed(SLURM, v2(700 * MB, used=300 * MB, cached=100 * MB))
    assert machine(f"0::/{SLURM}/step_0/user/task_0\n", V2.format(seen="/"), files) == (700, 500)


def test_the_first_version_of_control_groups_is_read_beside_the_second(machine):
    """As on hybrid systems, where the second has no memory controller."""
    unlimited = (1 << 63) - 4096
    files = placed("memory", v1(unlimited)) | placed("memory/slurm/uid_1", v1(unlimited))
    files |= placed("memory/slurm/uid_1/job_7", v1(700 * MB, used=650 * MB, cached=50 * MB))
    groups = "9:name=systemd:/\n4:cpu,memory:/slurm/uid_1/job_7\n3:cpuset:/elsewhere\n0::/\n"
    assert machine(groups, V1.format(seen="/") + V2.format(seen="/"), files) == (700, 100)


@pytest.mark.parametrize(
    ("path", "seen"),
    [("/docker/abc", "/docker/abc"), ("/", "/"), ("/docker/abc", "/"), ("/../..", "/")],
    ids=["mount of the group alone", "namespace", "path of the host", "above the namespace"],
)
def test_in_a_container_the_limit_is_where_its_mount_is(machine, path, seen):
    """Whether it has a namespace of its own, or sees the host's path."""
    assert machine(f"0::{path}\n", V2.format(seen=seen), v2(2000 * MB, used=500 * MB)) == (2000, 1500)


def test_a_group_that_uses_more_than_its_limit_has_nothing_free(machine):
    """The limit may have been lowered since."""
    assert machine("0::/\n", V2.format(seen="/"), v2(100 * MB, used=300 * MB)) == (100, 0)


def test_without_control_groups_it_is_the_machines(machine, tmp_path):
    """Also where there is no /proc, as on a Mac."""
    assert machine("", "", {}) == (24000, 20000)
    found = machine_memory(tmp_path / "nothing")
    assert found == MachineMemory(machine=found.machine, usable=found.machine, free=found.machine)
