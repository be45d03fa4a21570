"""What a run lacks on this machine: a line for each thing, which says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from attrs import frozen
from packaging.requirements import InvalidRequirement, Requirement

from modelwright.core import runner
from modelwright.core.api.components import ComponentSpec, EngineSpec, FormatSpec, MetricSpec, TrainerSpec
from modelwright.core.api.errors import ModelwrightError, SeveralErrors
from modelwright.core.api.wording import either
from modelwright.core.config.cluster import STAGES, ClusterConfig
from modelwright.core.config.metrics import metric_name
from modelwright.core.doctor.machine import imported
from modelwright.core.runs.stage import Run
from modelwright.core.stages.evaluate.suites import ENGINE
from modelwright.core.stages.requirements import About, requirements, unmet

# DeepSpeed builds it at the start of every training on CPUs.
_SHARED_MEMORY = "deepspeed_shm_comm"

Facts = Mapping[str, Any]


@frozen
class Missing:
    """Something that a run needs and this machine lacks: a line that says what to do."""

    run: str
    text: str


def missing(runs: Sequence[Run], facts: Facts, *, elsewhere: bool = False) -> list[Missing]:
    """What the runs would miss.

    Args:
        runs: from `runner.open_run`.
        facts: from `machine_facts`.
        elsewhere: whether they will train on other devices than those of this machine.
    """
    return [
        Missing(run.config.name, text)
        for run in runs
        for text in dict.fromkeys(_of_run(run, facts, elsewhere=elsewhere))
    ]


def _of_run(run: Run, facts: Facts, *, elsewhere: bool) -> Iterator[str]:
    for check in _CHECKS if not elsewhere else [_shared_but_memory, *(one for one in _CHECKS if one not in _HERE)]:
        try:
            yield from check(run, facts)
        except SeveralErrors as error:
            yield from map(str, error.errors)
        except ModelwrightError as error:
            yield str(error)


def _shared(run: Run, _facts: Facts, left_out: Sequence[About] = ("component",)) -> Iterator[str]:
    """What a run itself checks before it starts, but for components, which are imported here."""
    stages = [stage for stage in runner.NAMES if stage != "evaluate" or run.config.evaluate]
    needed = requirements(run, stages, download=False)
    yield from map(str, unmet(one for one in needed if one.about not in left_out))


def _shared_but_memory(run: Run, facts: Facts) -> Iterator[str]:
    yield from _shared(run, facts, ("component", "memory"))


def _torch(_run: Run, facts: Facts) -> Iterator[str]:
    broken = (facts["torch"] or {}).get("error")
    if broken:
        yield f"torch cannot be imported: {broken}: pip install --force-reinstall torch"


def _components(run: Run, facts: Facts) -> Iterator[str]:
    """What cannot be imported is tried in a process of its own: to import it here may end this one."""
    specs = list(_specs(run))
    for extra in dict.fromkeys(spec.needs for spec in specs):
        yield from _outdated(extra)
    broken = facts["torch"] is None or "error" in facts["torch"]
    modules = [spec.factory.partition(":")[0] for spec in specs]
    if broken or "error" not in imported(*modules):  # most need torch, and that has a line of its own
        return
    for spec, module in zip(specs, modules, strict=True):
        answer = imported(module)
        if "error" in answer:
            remedy = f"pip install '{spec.needs}'" if spec.needs else "choose another one, or ask its author"
            yield f"{spec.kind} {spec.name!r} cannot be imported: {answer['error']}: {remedy}"


def _specs(run: Run) -> Iterator[ComponentSpec]:
    config, plugins = run.config, run.plugins
    formats = dict.fromkeys([config.data.format, *(suite.format or config.data.format for suite in config.evaluate)])
    metrics = dict.fromkeys(metric_name(label) for suite in config.evaluate for label in suite.metrics)
    yield from (plugins.get(FormatSpec, name) for name in formats)
    if config.train:
        yield plugins.get(TrainerSpec, config.train.trainer)
    yield from (plugins.get(MetricSpec, name) for name in metrics)
    if config.evaluate:
        yield plugins.get(EngineSpec, ENGINE)


def _outdated(needs: str) -> Iterator[str]:
    """Packages of one of this project's extras that are older than it asks for; absent ones fail at their import."""
    try:
        ours = Requirement(needs)
        required = metadata.requires("modelwright") or [] if ours.name == "modelwright" else []
    except (InvalidRequirement, metadata.PackageNotFoundError):  # another project's words, or a copy of the sources
        return
    for requirement in map(Requirement, required):
        if requirement.marker and any(requirement.marker.evaluate({"extra": extra}) for extra in ours.extras):
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                yield (
                    f"{requirement.name} is {version}, and {requirement.specifier} is needed: "
                    f"pip install --upgrade '{needs}'"
                )


def _gpus(run: Run, facts: Facts) -> Iterator[str]:
    """Of a run on a cluster, the GPUs are those of its nodes."""
    torch, driver, train = facts["torch"] or {}, facts["driver"] or {}, run.config.train
    gpus = torch.get("gpus", [])
    if "gpus" in torch and not gpus and driver.get("gpus"):
        yield (
            f"torch finds none of the {len(driver['gpus'])} GPUs of this machine: {torch['why_no_gpu']}: install a "
            f"build for this driver ({driver['version']}): https://pytorch.org/get-started/locally"
        )
    if run.config.cluster is not None or not gpus or not train:
        return
    launcher = run.plugins.get(TrainerSpec, train.trainer).launcher
    if launcher == "deepspeed" and train.processes != "auto" and train.processes > len(gpus):
        there = "is 1 GPU" if len(gpus) == 1 else f"are {len(gpus)} GPUs"
        yield f'[train] processes is {train.processes}, but there {there} here: set it to {len(gpus)} or "auto"'
    old = next((gpu["name"] for gpu in gpus if not gpu["bfloat16"]), None)
    if train.precision == "bfloat16" and old:
        yield f'[train] precision is "bfloat16", which {old} can only emulate, slowly: set it to "float32"'


def _deepspeed(run: Run, facts: Facts) -> Iterator[str]:
    deepspeed, build = facts["deepspeed"] or {}, facts["build"]
    train = run.config.train
    if not train or run.plugins.get(TrainerSpec, train.trainer).launcher != "deepspeed":
        return
    if "error" in deepspeed:
        yield f"deepspeed cannot be imported: {deepspeed['error']}: pip install --force-reinstall deepspeed"
        return
    op = deepspeed.get("ops", {}).get(_SHARED_MEMORY)
    if deepspeed.get("accelerator") != "cpu" or op is None or op["prebuilt"] or not op["compatible"]:
        return
    remedies = {
        "compiler": "a C++ compiler (apt install g++, or module load gcc)",
        "ninja": "ninja (pip install ninja)",
    }
    for name, remedy in remedies.items():
        if build[name] is None:
            yield f"DeepSpeed must build {_SHARED_MEMORY} to train on CPUs: install {remedy}"


def _storage(_run: Run, facts: Facts) -> Iterator[str]:
    home = facts["home"]
    elsewhere = "set MODELWRIGHT_HOME to a folder on another file system"
    if home["problem"]:
        yield f"{home['path']} {home['problem']}: set MODELWRIGHT_HOME to a writable folder"
    elif home["locks"] not in ("yes", "this machine only"):
        yield f"{home['path']}: this file system does not support locks ({home['locks']}): {elsewhere}"


def _cluster(run: Run, facts: Facts) -> Iterator[str]:
    cluster, slurm = run.config.cluster, facts["slurm"]
    if cluster is None:
        return
    if slurm is None:
        yield (
            "[cluster] needs Slurm, but sbatch is not on the path: submit from a login node of the cluster, or load "
            "Slurm's module there"
        )
        return
    if slurm["error"]:
        yield f"[cluster] needs Slurm, which does not answer: {slurm['error']}: ask the cluster's administrators"
        return
    for stage in STAGES:
        yield from _partition(cluster, stage, slurm["partitions"])


def _partition(cluster: ClusterConfig, stage: str, partitions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a partition lacks of what a stage's jobs request."""
    requested, nodes = cluster.of(stage), cluster.nodes if stage == "train" else 1
    names = list(dict.fromkeys(row["name"] for row in partitions))
    wanted = requested.partition or next((row["name"] for row in partitions if row["default"]), None)
    unknown = [name for name in (wanted or "").split(",") if name not in names]
    if requested.partition and unknown:
        yield f"{cluster.key(stage, 'partition')} {unknown[0]!r} does not exist: set it to {either(names)}"
    if wanted is None or unknown:
        return
    fit = sum(row["nodes"] for row in partitions if row["name"] in wanted.split(",") and row["gpus"] >= requested.gpus)
    if nodes > fit:
        having = f" with {requested.gpus} GPUs each" if requested.gpus else ""
        yield (
            f"[cluster] nodes is {nodes}, but partition {wanted} has {fit}{having}: lower it, or set another partition"
        )


_CHECKS: tuple[Callable[[Run, Facts], Iterator[str]], ...] = (
    *(_shared, _torch, _components),
    *(_gpus, _deepspeed, _storage, _cluster),
)
# Of them, those that look at the memory and the GPUs of this machine.
_HERE = (_shared, _gpus)
