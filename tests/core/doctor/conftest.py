"""Packages that are broken, a run file, and a real Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_run import tiny_run

REPOSITORY = Path(__file__).parents[3]
TOOL = REPOSITORY.parent / "shared" / "tools" / "mini-slurm.sh"
GPUS, NODES = 3, 2

RUN = """
train.max_steps = 1
[[evaluate]]
name = "sums"
path = "builtin:arithmetic/test"
metrics = ["math_accuracy"]
"""


@pytest.fixture
def run_file(tmp_path):
    """Writes a run file, with more of it laid over."""

    def write(*more):
        path = tmp_path / "run.toml"
        path.write_text(tiny_run(RUN, *more))
        return path

    return write


def _reported(done):
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def doctor(command, probed_once):
    """`modelwright doctor --json` in this process: its exit code and what it tells."""
    return lambda *arguments: _reported(command("doctor", *arguments, "--json"))


@pytest.fixture
def doctor_elsewhere(modelwright):
    """The same in another process, which finds the packages of the fixture `package`."""
    return lambda *arguments: _reported(modelwright("doctor", *arguments, "--json"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a package before those that are installed."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))

    def write(name, source=None, *, version=None):
        if source is not None:
            (site / f"{name}.py").write_text(source)
        if version is not None:
            (site / f"{name}-{version}.dist-info").mkdir()
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (site / f"{name}-{version}.dist-info/METADATA").write_text(metadata)
        return site

    return write


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The configuration of a Slurm with two nodes of three GPUs, as it says."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        if shutil.which(program, path=path) is None:
            pytest.skip(f"{program} is not installed (Debian: slurm-wlm, munge)")
    if not TOOL.is_file():
        pytest.skip("mini-slurm.sh, which starts a cluster, is not beside this checkout")
    folder = tmp_path_factory.mktemp("slurm")
    extra = "PartitionName=short Nodes=n1 MaxTime=30"
    environment = os.environ | {"MINI_SLURM_GPUS": str(GPUS), "MINI_SLURM_EXTRA": extra}
    done = subprocess.run(
        [TOOL, "start", folder, str(NODES)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    yield str(folder / "slurm.conf")
    subprocess.run([TOOL, "stop", folder], capture_output=True, check=True)
