"""`modelwright doctor`: what this machine has, and what of it a run.toml would miss."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from modelwright.core.cli.common import json_option, print_json, print_table, registry_option, run_options, size_text
from modelwright.core.cli.run import open_runs

Row = tuple[str, str]
# Number of packages in a row of the table.
_IN_A_ROW = 5


@click.command()
@functools.partial(run_options, required=False)
@registry_option
@click.option(
    "--device",
    metavar="SIZE[xN]",
    help="Show what training RUN.toml takes on N GPUs with this much memory, such as 24GB or 80GBx16, and what fits.",
)
@json_option
def doctor(path: Path | None, *, device: str | None, as_json: bool, **chosen: Any) -> int:
    """Report what this machine has: packages, GPUs, memory, disk, Slurm. With RUN.toml, also what that run lacks.

    Writes and downloads nothing. Exit code 1 means that something is missing.
    """
    from attrs import asdict

    from modelwright.core.api.errors import UsageError
    from modelwright.core.doctor.machine import machine_facts
    from modelwright.core.doctor.memory import does_not_fit, read_device, ways
    from modelwright.core.doctor.needs import Missing, missing

    if path is None and (device is not None or any(chosen.values())):
        raise UsageError("--variant, --set, --registry and --device need a RUN.toml")
    there = read_device(device) if device is not None else None
    runs = [] if path is None else open_runs(path=path, **chosen)
    facts = machine_facts()
    lacking = missing(runs, facts, elsewhere=there is not None)
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs if there else ():
        assert there is not None
        found = ways(run, there)
        tables[run.config.name] = [way.facts() for way in found]
        if line := does_not_fit(found, there):
            lacking.append(Missing(run.config.name, line))
    if as_json:
        memory = {"memory": tables} if there else {}
        print_json({"machine": facts, "missing": [asdict(each) for each in lacking], **memory})
    else:
        print_table(("machine", "found"), _rows(facts))
        for name, rows in tables.items():
            print_table(_MEMORY, map(_memory_row, rows), title=f"{name}: GB on each of {device}")
        if lacking:
            print_table(("run", "missing"), [(each.run, each.text) for each in lacking])
        elif runs:
            click.echo(f"Nothing is missing for {', '.join(one.config.name for one in runs)}.")
    return 1 if lacking else 0


_LINES = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "device", "host")
_MEMORY = ("fits", *_LINES[:-2], "in all", "main memory", "tokens", "at most", "how")


def _memory_row(row: Mapping[str, Any]) -> Sequence[str]:
    sizes = [f"{row[line] / 1e9:.1f}" for line in _LINES]
    return (
        "yes" if row["fits"] else "no",
        *sizes,
        f"{row['micro_batch_tokens']}",
        f"{row['most_tokens']}",
        row["label"],
    )


def _rows(facts: Mapping[str, Any]) -> Iterator[Row]:
    system, home, hub = facts["system"], facts["home"], facts["hub"]
    yield "Python", f"{facts['python']['version']}, {facts['python']['executable']}"
    yield "system", system["platform"]
    bfloat16 = {True: "bfloat16 in hardware", False: "bfloat16 emulated", None: "bfloat16 unknown"}
    yield "CPUs", f"{system['usable_cpus']} of {system['cpus']}, {system['cpu']}, {bfloat16[system['bfloat16']]}"
    limited = system["memory"] < system["built_in_memory"]
    of = f" of {size_text(system['built_in_memory'])} (limit of this process's control group)" if limited else ""
    yield "memory", size_text(system["memory"]) + of
    versions = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    for start in range(0, len(versions), _IN_A_ROW):
        yield "" if start else "packages", ", ".join(versions[start : start + _IN_A_ROW])
    yield "not installed", ", ".join(name for name, version in facts["packages"].items() if not version) or "none"
    yield from _torch(facts["torch"], facts["driver"])
    yield from _deepspeed(facts["deepspeed"], facts["build"])
    flash = facts["flash_attn"]
    yield "flash-attn", "not installed" if flash is None else flash.get("error") or flash["version"]
    yield from _slurm(facts["slurm"])
    locks = {
        "yes": "locks",
        "this machine only": "locks only between processes of one machine",
        "unknown": "locks unknown",
    }
    shared = locks.get(home["locks"], f"no locks ({home['locks']})")
    yield "home", f"{home['path']}: {size_text(home['free'])} free on {home['file_system'] or 'its disk'}, {shared}"
    yield "hub", f"{'offline' if hub['offline'] else 'online'}, cache {hub['cache']}"


def _torch(torch: Mapping[str, Any] | None, driver: Mapping[str, Any] | None) -> Iterator[Row]:
    if torch is None or "error" in torch:
        yield "torch", "not installed" if torch is None else f"cannot be imported: {torch['error']}"
    else:
        build = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['rocm']}" if torch["rocm"] else "CPU"
        nccl = f", NCCL {torch['nccl']}" if torch["nccl"] else ", no NCCL"
        yield "torch", f"{torch['version']}, built for {build}, {torch['cpu_capability']}{nccl}"
        for number, gpu in enumerate(torch["gpus"]):
            free = "" if gpu["free"] is None else f" ({size_text(gpu['free'])} free)"
            exact = "bfloat16" if gpu["bfloat16"] else "bfloat16 emulated"
            yield f"GPU {number}", f"{gpu['name']}, {size_text(gpu['memory'])}{free}, {exact}"
        if not torch["gpus"]:
            yield "GPUs", "Apple's (MPS)" if torch["mps"] else f"none: {torch['why_no_gpu']}"
    if driver is not None:
        yield "driver", driver.get("error") or f"NVIDIA {driver['version']}: {', '.join(driver['gpus']) or 'no GPU'}"


def _deepspeed(deepspeed: Mapping[str, Any] | None, build: Mapping[str, Any]) -> Iterator[Row]:
    if deepspeed is None or "error" in deepspeed:
        yield "DeepSpeed", "not installed" if deepspeed is None else f"cannot be imported: {deepspeed['error']}"
        return
    yield "DeepSpeed", f"{deepspeed['version']}, on {deepspeed['accelerator']}"
    ops = deepspeed["ops"]
    built = [name for name, op in ops.items() if op["prebuilt"]]
    can = [name for name, op in ops.items() if op["compatible"] and not op["prebuilt"]]
    cannot = [name for name, op in ops.items() if not op["compatible"] and not op["prebuilt"]]
    yield "DeepSpeed ops", f"built: {', '.join(built) or 'none'}"
    yield "", f"built when needed: {', '.join(can) or 'none'}"
    yield "", f"not possible here: {', '.join(cannot) or 'none'}"
    tools = [f"{name}: {version or 'not installed'}" for name, version in build.items()]
    yield "build tools", "; ".join(tools)


def _slurm(slurm: Mapping[str, Any] | None) -> Iterator[Row]:
    if slurm is None:
        yield "Slurm", "no sbatch on the path"
        return
    yield "Slurm", slurm["error"] or slurm["version"]
    for row in slurm["partitions"]:
        gpus = f", {row['gpus']} GPUs" if row["gpus"] else ""
        size = f"{row['nodes']} nodes of {row['cpus']} CPUs, {size_text(row['memory'])}{gpus}"
        yield "", f"partition {row['name']}{' (default)' if row['default'] else ''}: {size}, limit {row['time']}"
