"""Which devices are used, on machines that this one is not."""

from __future__ import annotations

import pytest

from modelwright.core.api import devices
from modelwright.core.api.devices import (
    Accelerators,
    check_visible,
    chosen_device,
    device_names,
    open_device,
    users_of,
    visible,
)
from modelwright.core.api.errors import UsageError

EIGHT = Accelerators(kind="cuda", count=8, installed=8)
MIG = "MIG-5c1a3b1e-0c4f-5d2e-9f0a-0123456789ab"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("4,5", ("4", "5")),
        (" 4, 5 ", ("4", "5")),
        ("GPU-8932f937,GPU-11", ("GPU-8932f937", "GPU-11")),
        (f"{MIG},MIG-GPU-1/2/3", (MIG, "MIG-GPU-1/2/3")),
        ("0,-1,1", ("0",)),
        ("", ()),
        ("NoDevFiles", ()),
        (None, None),
    ],
)
def test_the_devices_that_a_variable_names(value, names):
    """As CUDA reads it; Slurm writes NoDevFiles for a job without GPUs."""
    assert visible("cuda", {} if value is None else {"CUDA_VISIBLE_DEVICES": value}) == names


def test_each_process_gets_a_device_of_those_that_the_environment_names():
    """In their order; without the variable they are numbered, and too few are never filled up with others' devices."""
    assert device_names(2, "cuda", {"CUDA_VISIBLE_DEVICES": "5,4,7"}) == ["5", "4"]
    assert device_names(2, "cuda", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) == ["GPU-a", "GPU-b"]
    assert device_names(1, "xpu", {"ZE_AFFINITY_MASK": "1.0"}) == ["1.0"]
    assert device_names(2, "cuda", {}) == device_names(2, None, {"CUDA_VISIBLE_DEVICES": "7"}) == ["0", "1"]
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES is '4' on .*, and 2 processes need a device each"):
        device_names(2, "cuda", {"CUDA_VISIBLE_DEVICES": "4"})


@pytest.mark.parametrize(
    ("seen", "value"),
    [
        (Accelerators(kind="cuda", count=1, installed=2), "0,9"),
        (Accelerators(kind="cuda", installed=2), "GPU-gone"),
        (Accelerators(kind="cuda", installed=2), None),
        (Accelerators(kind="xpu"), "0"),
    ],
    ids=["one of two", "none", "a driver that torch cannot use", "Intel's"],
)
def test_a_visible_device_that_is_not_there_is_one_line(seen, value, wording):
    """CUDA hides it, and those after it, without a word: the training would run on fewer GPUs, or on the CPU."""
    environment = {} if value is None else {devices.VISIBLE[seen.kind]: value}
    with pytest.raises(UsageError) as caught:
        check_visible(seen, environment)
    wording(str(caught.value))


@pytest.mark.parametrize(
    ("seen", "environment"),
    [
        (EIGHT, {}),
        (Accelerators(kind="cuda", count=2, installed=8), {"CUDA_VISIBLE_DEVICES": "4,5"}),
        (Accelerators(kind="cuda", count=1, installed=1), {"CUDA_VISIBLE_DEVICES": f"{MIG},{MIG}"}),
        (Accelerators(kind="cuda", installed=8), {"CUDA_VISIBLE_DEVICES": ""}),
        (Accelerators(kind="cuda", installed=8), {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}),
        (Accelerators(kind="cuda"), {"HIP_VISIBLE_DEVICES": "4"}),
        (Accelerators(kind="cuda"), {}),
        (Accelerators(), {"CUDA_VISIBLE_DEVICES": "0"}),
        (Accelerators(kind="mps", count=1), {"CUDA_VISIBLE_DEVICES": "0"}),
    ],
    ids=["all", "two", "MIG", "hidden", "Slurm's", "AMD's", "no GPU", "torch for CPUs", "Apple's"],
)
def test_what_is_hidden_on_purpose_is_not_missed(seen, environment):
    """A process can use one MIG device however many are named, and a torch for CPUs promises nothing."""
    check_visible(seen, environment)


@pytest.mark.parametrize(
    ("requested", "seen", "expected"),
    [
        ("auto", EIGHT, "cuda:0"),
        ("auto", Accelerators(kind="cuda", installed=1), "cpu"),
        ("auto", Accelerators(kind="mps", count=1), "mps"),
        ("auto", Accelerators(kind="xpu", count=2), "xpu:0"),
        ("auto", Accelerators(), "cpu"),
        ("cuda:3", EIGHT, "cuda:3"),
        ("cuda", EIGHT, "cuda:0"),
        ("cpu", EIGHT, "cpu"),
        ("mps", Accelerators(kind="mps", count=1), "mps"),
    ],
)
def test_the_device_is_the_requested_one_or_the_first_accelerator(requested, seen, expected):
    assert chosen_device(requested, seen) == expected


@pytest.mark.parametrize(
    ("requested", "seen"),
    [("cuda:2", Accelerators(kind="cuda", count=2)), ("mps", EIGHT), ("cuda", Accelerators()), ("gpu", EIGHT)],
    ids=["a third of two", "Apple's", "torch for CPUs", "a word"],
)
def test_a_device_that_cannot_be_used_is_one_line(requested, seen, wording):
    """It names those that can be."""
    with pytest.raises(ValueError, match="cannot be used") as caught:
        chosen_device(requested, seen)
    wording(str(caught.value))


def test_who_uses_a_gpu_is_named():
    """From nvidia-smi, which hides memory and program in some containers; the asking process is left out."""
    answer = """GPU-aa, 4211, 11730, /opt/conda/bin/python
GPU-aa, 77, 300, python
GPU-bb, 12, 9000, python
GPU-aa, 4300, [N/A], [Not Found]
No devices were found
"""
    owners = {4211: "anna"}
    assert users_of("aa", answer, owners.get, besides=77) == (
        " (12.3 GB used by anna: python, process 4211; memory used by someone: [Not Found], process 4300)"
    )
    assert users_of("cc", answer, owners.get, besides=77) == ""


def test_nvidia_smi_says_who_uses_a_gpu(monkeypatch, tmp_path):
    """Where there is none, or it fails, nothing is said."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU-aa, 1, 1000, init\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.in_use("aa") == " (1.0 GB used by root: init, process 1)"
    program.write_text("no program")
    assert devices.in_use("aa") == ""
    program.unlink()
    assert devices.in_use("aa") == ""


def test_a_device_that_another_process_keeps_for_itself_is_one_line(monkeypatch, wording):
    """With whom it belongs to, if that can be seen."""
    import torch

    def busy(*_, **__):
        raise RuntimeError(
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be …"
        )

    monkeypatch.setattr(torch, "empty", busy)
    monkeypatch.setattr(devices, "described", lambda _: "NVIDIA A100 (12.3 GB used by anna: python, process 4211)")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UsageError) as caught:
        open_device("cuda:1", EIGHT, "[train.options] device")
    wording(caught.value)


def test_another_process_imports_torch_only_if_its_build_can_use_a_device(monkeypatch):
    """Importing it takes seconds; the answer is kept while the variables are the same."""
    commands = []
    monkeypatch.setattr(devices.subprocess, "run", lambda command, **_: commands.append(command) or _Said())
    monkeypatch.setattr(devices, "_for_cpus_only", lambda: True)
    assert devices.ask_torch() == Accelerators()
    assert commands == []
    monkeypatch.setattr(devices, "_for_cpus_only", lambda: False)
    for value in ("4,5", "4,5", "6"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert devices.ask_torch() == Accelerators(kind="cuda", count=2, installed=8)
    assert len(commands) == 2
    devices._reported.cache_clear()


class _Said:
    stdout = 'a library prints this\n{"kind": "cuda", "count": 2, "installed": 8}\n'


def test_the_build_of_torch_is_read_without_importing_it():
    """It is what torch says of itself."""
    import torch

    assert devices._for_cpus_only() == (torch.accelerator.current_accelerator() is None)
    assert (devices.accelerators().kind is None) == devices._for_cpus_only()
