"""What a training or an engine computes on: which devices torch sees, and which of them is used.

The rules are functions of plain values, so that a test can give them machines that it does not have. Only torch knows
what it can use (NVIDIA's and AMD's GPUs are both "cuda", Intel's "xpu", Apple's "mps"), and importing it takes seconds:
`accelerators` asks it in this process, `ask_torch` in another one, and only if its build can use a device at all.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pwd
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import asdict, frozen

from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.wording import first_line

if TYPE_CHECKING:
    import torch

# The variable by which each kind of device is hidden from a process.
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK", "npu": "ASCEND_RT_VISIBLE_DEVICES"}
# Other variables that hide AMD's GPUs, which count from 0 behind them.
_OF_AMD = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# A device as one writes it.
DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")
# NVIDIA's names of a device beside its number: of a GPU, and of a part of one.
_NAMED = re.compile(r"\d+(\.\d+)?|(GPU|MIG)-\S+")
# Seconds. A first import from a shared file system that is busy takes minutes.
_IMPORT_WITHIN = 180.0
_PROGRAM_WITHIN = 20.0


@frozen(kw_only=True)
class Accelerators:
    """The devices beside the CPU that torch can use.

    Attributes:
        kind: what this build of torch is for: "cuda" (also AMD's), "xpu", "mps" …; None for CPUs only.
        count: number of devices that this process may use, without those that its environment hides.
        installed: number of NVIDIA GPUs that the driver has, hidden ones included.
    """

    kind: str | None = None
    count: int = 0
    installed: int = 0


def accelerators() -> Accelerators:
    """What torch sees in this process, which imports it."""
    import torch

    device = torch.accelerator.current_accelerator()
    return Accelerators(
        kind=device.type if device else None,
        count=torch.accelerator.device_count() if device else 0,
        installed=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
    )


def ask_torch() -> Accelerators:
    """What torch sees, without importing it here.

    Raises:
        ModelwrightError: torch cannot say.
    """
    if _for_cpus_only():
        return Accelerators()
    return _reported(tuple(os.environ.get(name) for name in (*VISIBLE.values(), *_OF_AMD)))


def _for_cpus_only() -> bool:
    """Whether torch's build can use nothing but the CPU, by the file that says for what it was built."""
    if sys.platform == "darwin" or metadata.entry_points(group="torch.backends"):
        return False
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return False
    built = runpy.run_path(str(file))
    return not any(built.get(name) for name in ("cuda", "hip", "xpu"))


@functools.cache
def _reported(_visible: tuple[str | None, ...]) -> Accelerators:
    """The answer of another process, for each value of the variables that hide devices."""
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_IMPORT_WITHIN, check=True
        )
        return Accelerators(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        why = f"importing it takes longer than {_IMPORT_WITHIN:.0f} s"
    except subprocess.CalledProcessError as error:
        why = next(reversed(error.stderr.strip().splitlines()), f"exit code {error.returncode}")
    raise ModelwrightError(f"cannot ask torch which devices there are: {why}; see `modelwright doctor`")


def visible(kind: str | None, environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The devices that the environment names: numbers, or NVIDIA's names; None if it hides none.

    As CUDA reads the variable, the first thing in it that is not a device (`-1`, `NoDevFiles`) ends the list.
    """
    value = environment.get(VISIBLE.get(kind or "", ""))
    if value is None:
        return None
    names: list[str] = []
    for name in (each.strip() for each in value.split(",")):
        if not _NAMED.fullmatch(name):
            break
        names.append(name)
    return tuple(names)


def check_visible(seen: Accelerators, environment: Mapping[str, str]) -> None:
    """Refuse to compute on fewer devices than the environment or the driver promises, or silently on the CPU.

    A process can use one MIG device only, however many are named.

    Raises:
        UsageError: a named device is not there, or torch sees none of those that the driver has.
    """
    names = visible(seen.kind, environment)
    if names is None:
        hidden = any(environment.get(name) is not None for name in _OF_AMD)
        if seen.kind == "cuda" and seen.installed and not seen.count and not hidden:
            raise UsageError(
                f"this machine has {_gpus(seen.installed)}, but torch cannot use any: `modelwright doctor` says why; "
                'set CUDA_VISIBLE_DEVICES="" to compute on the CPU'
            )
        return
    promised = 1 if names and names[0].startswith("MIG-") else len(names)
    if seen.count >= promised:
        return
    variable = VISIBLE[seen.kind or ""]
    raise UsageError(
        f"{variable} is {environment[variable]!r}, and device {names[seen.count]} does not exist or cannot be used "
        f"(torch sees {seen.count or 'none'} of them): name devices that this machine has, or "
        "unset it"
    )


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def chosen_device(requested: str, seen: Accelerators) -> str:
    """The device to compute on.

    Args:
        requested: "cpu", "mps", "cuda", "cuda:1", "xpu" …; "auto" takes the first accelerator that there is.
        seen: what torch can use.

    Raises:
        ValueError: the device is not there; the message names what is.
    """
    kind, _, number = requested.partition(":")
    if requested == "auto":
        kind = seen.kind if seen.kind and seen.count else "cpu"
    there = "cpu" if not seen.count else f"cpu, {', '.join(f'{seen.kind}:{index}' for index in range(seen.count))}"
    if not DEVICE.fullmatch(requested):
        raise ValueError(f"device {requested!r} cannot be used: expected one of {there}")
    if kind == "cpu":
        return "cpu"
    if kind != seen.kind or int(number or 0) >= seen.count:
        why = "torch was built without it" if kind != seen.kind else "torch does not see it"
        raise ValueError(f"device {requested!r} cannot be used: {why}; there is {there}")
    return "mps" if kind == "mps" else f"{kind}:{number or 0}"


def open_device(requested: str, seen: Accelerators, key: str) -> torch.device:
    """The `torch.device` to compute on, tried: a GPU may be kept by another process for itself.

    Args:
        requested: see `chosen_device`.
        seen: what torch can use.
        key: where the device is requested, for messages.

    Raises:
        UsageError: it is not there, or cannot be used; the message names who uses it, if that can be seen.
    """
    import torch

    if requested != "cpu":
        check_visible(seen, os.environ)

    try:
        device = torch.device(chosen_device(requested, seen))
    except ValueError as error:
        raise UsageError(f"{key}: {error}") from error
    try_device(device, key)
    return device


def try_device(device: torch.device, key: str) -> None:
    """Use a `torch.device` for a moment.

    Raises:
        UsageError: as `open_device`.
    """
    import torch

    try:
        torch.empty(1, device=device)
    except RuntimeError as error:
        raise UsageError(f"{key}: {described(device)} cannot be used: {first_line(error)}") from error


def device_names(count: int, kind: str | None, environment: Mapping[str, str]) -> list[str]:
    """The devices for `count` processes on a machine: those that the environment names, else the first ones.

    DeepSpeed's launcher sets the variable of its processes to these.

    Raises:
        UsageError: it names fewer.
    """
    names = visible(kind, environment)
    if not names:
        return [str(number) for number in range(count)]
    if len(names) < count:
        variable = VISIBLE[kind or ""]
        raise UsageError(
            f"{variable} is {environment[variable]!r} on {socket.gethostname()}, and {count} processes need a device "
            "each: start fewer processes, or name more devices"
        )
    return list(names[:count])


def in_use(uuid: str) -> str:
    """Who uses an NVIDIA GPU, as far as it can be seen: ` (12.3 GB used by anna: python, process 4211)`, or nothing.

    Args:
        uuid: of the GPU, as torch gives it.
    """
    if shutil.which("nvidia-smi") is None:
        return ""
    query = "--query-compute-apps=gpu_uuid,pid,used_memory,process_name"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROGRAM_WITHIN,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return users_of(uuid, done.stdout, _owner, besides=os.getpid())


def users_of(uuid: str, answer: str, owner: Callable[[int], str | None], *, besides: int) -> str:
    """`in_use`, from the answer of nvidia-smi, which gives memory in MiB.

    Args:
        uuid: of the GPU.
        answer: a line for each process: GPU, process, memory, program.
        owner: the user of a process, if it can be seen.
        besides: the process that is left out.
    """
    users = []
    for line in answer.splitlines():
        gpu, process, memory, program = (*map(str.strip, line.split(",", 3)), "", "", "")[:4]
        if gpu.removeprefix("GPU-") != uuid.removeprefix("GPU-") or not process.isdecimal() or int(process) == besides:
            continue
        size = f"{int(memory) * 2**20 / 1e9:.1f} GB" if memory.isdecimal() else "memory"
        name = Path(program).name or "a program"
        users.append(f"{size} used by {owner(int(process)) or 'someone'}: {name}, process {process}")
    return f" ({'; '.join(users)})" if users else ""


def _owner(process: int) -> str | None:
    try:
        return pwd.getpwuid(Path(f"/proc/{process}").stat().st_uid).pw_name
    except (OSError, KeyError):
        return None


def described(device: torch.device) -> str:
    """The name of a `torch.device` for messages, and who else uses it."""
    import torch

    users = in_use(str(torch.cuda.get_device_properties(device).uuid)) if device.type == "cuda" else ""
    return device_name(device) + users


def device_name(device: torch.device) -> str:
    """The name that a `torch.device` has from its maker; "cpu" and "mps" have none."""
    import torch

    if device.type in ("cpu", "mps"):
        return str(device.type)
    return str(torch.get_device_module(device).get_device_name(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a `torch.device` computes in bfloat16, and does not emulate it; every CPU does, some slowly."""
    import torch

    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type == "cpu":
        return True
    module = torch.get_device_module(device)
    with module.device(device):
        return bool(module.is_bf16_supported(including_emulation=False))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(accelerators())))
