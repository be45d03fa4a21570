"""What doctor says of a machine is so, and a broken package is a line of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from modelwright.core.doctor.machine import imported, program, storage_facts, version_line


def test_the_facts_of_this_machine_are_those_that_its_packages_give(doctor, home):
    """Nothing is kept: the home is not even made."""
    code, printed = doctor()
    facts = printed["machine"]
    assert (code, printed["missing"]) == (0, [])
    assert facts["python"] == {"version": platform.python_version(), "executable": sys.executable}
    assert facts["packages"]["torch"] == metadata.version("torch") == facts["torch"]["version"]
    assert facts["packages"]["modelwright"] == metadata.version("modelwright")
    assert facts["system"]["usable_cpus"] == len(os.sched_getaffinity(0))
    assert 0 < facts["system"]["memory"] <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert "gloo" in facts["torch"]["backends"]
    assert facts["home"]["path"] == str(home)
    assert facts["home"]["free"] > 0
    assert (facts["home"]["locks"], facts["home"]["problem"]) == ("yes", None)
    assert facts["hub"]["offline"] is True
    assert not home.exists()


def test_what_torch_sees_is_what_doctor_tells(doctor):
    """Asked of torch in another process: the number of GPUs, CUDA, NCCL."""
    ask = "import torch; print(torch.version.cuda, torch.cuda.device_count(), torch.distributed.is_nccl_available())"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    torch = doctor()[1]["machine"]["torch"]
    assert [str(torch["cuda"]), str(len(torch["gpus"])), str(torch["nccl"] is not None)] == said
    assert bool(torch["gpus"]) is (torch["why_no_gpu"] is None)


def test_deepspeed_says_which_of_its_ops_can_be_had(doctor):
    """As its own report does."""
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    facts = doctor()[1]["machine"]
    assert facts["deepspeed"]["version"] == metadata.version("deepspeed")
    assert {"cpu_adam", "async_io"} <= facts["deepspeed"]["ops"].keys()
    report = subprocess.run(
        [sys.executable, "-m", "deepspeed.env_report"], capture_output=True, text=True, check=False, env=tools()
    )
    plain = re.sub(r"\x1b\[\d+m", "", report.stdout)
    table = re.findall(r"^(\w+) \.+ \[(?:NO|YES)\] \.+ \[(NO|OKAY)\]$", plain, re.MULTILINE)
    said = {name: compatible == "OKAY" for name, compatible in table}
    known = {name: op["compatible"] for name, op in facts["deepspeed"]["ops"].items() if name in said}
    assert known
    assert known == {name: said[name] for name in known}


def tools():
    """The programs of this Python are on the path."""
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


BROKEN = {
    "raises": ("raise ImportError('libcudart.so.12: cannot open shared object file\\nmore')", "ImportError: libcudart"),
    "exits": ("raise SystemExit('bad licence')", "SystemExit: bad licence"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "makes Python end (signal SIGSEGV"),
    "leaves": ("import os; os.write(2, b'no device\\n'); os._exit(3)", "makes Python end (exit code 3; no device)"),
    "prints": ("print('{}'); raise RuntimeError()", "RuntimeError"),
    "lacks": ("x = 1", "AttributeError"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_package_is_a_line_and_ends_nothing(doctor, package, how):
    """However it breaks; standard output holds JSON alone."""
    source, expected = BROKEN[how]
    for name in ("torch", "deepspeed", "flash_attn"):
        package(name, source)
    code, printed = doctor()
    assert (code, printed["missing"]) == (0, [])
    for name in ("torch", "flash_attn"):
        assert expected in printed["machine"][name]["error"]
    assert "error" in printed["machine"]["deepspeed"]
    assert "\n" not in printed["machine"]["torch"]["error"]


def test_an_import_that_hangs_is_given_up(package):
    """A file system that does not answer keeps nobody waiting for ever."""
    package("hanging_package", "import time; time.sleep(60)")
    assert imported("hanging_package", within=2) == {"error": "importing it takes longer than 2 s"}


def test_programs_that_are_not_there_or_fail_have_no_version(tmp_path, monkeypatch):
    """And say why, where they are there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version_line("c++", "--version") is None
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    script.chmod(0o755)
    assert version_line("c++", "--version") == "does not work: broken"
    script.write_text("#!/no/such/shell\n")
    assert program(["c++"])[1].startswith("cannot start c++")


def test_an_impossible_home_is_reported(tmp_path):
    """With the reason."""
    (tmp_path / "file").write_text("")
    facts = storage_facts(tmp_path / "file" / "home")
    assert facts["problem"] == f"cannot be created: {tmp_path / 'file'} is a file"
    assert facts["free"] > 0


def test_looking_for_locks_leaves_nothing(tmp_path):
    """In the folder itself, where it is there."""
    assert storage_facts(tmp_path)["locks"] == "yes"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("folder", "kind"), [("/proc", "proc"), ("/sys", "sysfs"), ("/dev/shm", "tmpfs")])
def test_the_kind_of_file_system_is_that_of_the_nearest_mount(folder, kind):
    """Not of the root, which everything is below."""
    if not Path(folder).is_mount():
        pytest.skip(f"{folder} is no mount here")
    assert storage_facts(Path(folder))["file_system"] == kind


def test_doctor_itself_imports_nothing_heavy():
    """It must work where they are broken."""
    code = (
        "import sys; from modelwright.core.doctor import machine, needs; "
        "assert not {'torch', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_slurm_lists_its_partitions(doctor, cluster, monkeypatch):
    """A real one: two nodes of three GPUs, and a partition of one of them."""
    monkeypatch.setenv("SLURM_CONF", cluster)
    slurm = doctor()[1]["machine"]["slurm"]
    assert slurm["error"] is None
    assert slurm["version"].startswith("slurm")
    (default,) = (row for row in slurm["partitions"] if row["default"])
    assert (default["nodes"], default["gpus"], default["cpus"], default["memory"]) == (2, 3, 4, 2048 * 2**20)
    (short,) = (row for row in slurm["partitions"] if row["name"] == "short")
    assert (short["nodes"], short["time"], short["default"]) == (1, "30:00", False)
