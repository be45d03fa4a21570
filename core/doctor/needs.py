"""What a run would miss on this machine: everything at once, each in a line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import frozen

from modelwright.core import runner
from modelwright.core.api.components import ComponentSpec, EngineSpec, FormatSpec, MetricSpec, TrainerSpec
from modelwright.core.api.errors import ModelwrightError, SeveralErrors, UsageError
from modelwright.core.chat.templates import read_template
from modelwright.core.chat.tokenizer import check_template
from modelwright.core.config.metrics import metric_name
from modelwright.core.config.paths import HUB
from modelwright.core.config.schema import ScratchConfig, SourceConfig
from modelwright.core.doctor.machine import imported
from modelwright.core.models.base import BASE_FILES
from modelwright.core.models.hf_folder import BadFolderError, check_base_folder, parameter_count
from modelwright.core.models.hub import fetch
from modelwright.core.registry import resolve
from modelwright.core.runs.stage import Run
from modelwright.core.stages.evaluate.suites import ENGINE
from modelwright.core.stages.prepare.builtin import parse_builtin
from modelwright.core.stages.prepare.deduplicate import check_datasketch
from modelwright.core.stages.prepare.quality import verifying_metric
from modelwright.core.stages.prepare.sources import source_files

# Bytes of a trained weight in a checkpoint: itself and AdamW's two moments, in float32.
_IN_CHECKPOINT = 12
# DeepSpeed builds it at the start of every training on CPUs.
_SHARED_MEMORY = "deepspeed_shm_comm"
_GB = 1e9

Facts = Mapping[str, Any]


@frozen
class Missing:
    """Something that a run needs and does not find: a line with what to do."""

    run: str
    text: str


def missing(runs: Sequence[Run], facts: Facts) -> list[Missing]:
    """What the runs would miss.

    Args:
        runs: from `runner.open_run`.
        facts: from `machine_facts`.
    """
    return [Missing(run.config.name, text) for run in runs for text in dict.fromkeys(_of_run(run, facts))]


def _of_run(run: Run, facts: Facts) -> Iterator[str]:
    for look in _LOOKS:
        try:
            yield from look(run, facts)
        except SeveralErrors as error:
            yield from map(str, error.errors)
        except ModelwrightError as error:
            yield str(error)


def _packages(run: Run, facts: Facts) -> Iterator[str]:
    stages = [stage for stage in runner.NAMES if stage != "evaluate" or run.config.evaluate]
    for stage in stages:
        try:
            runner.check_packages(stage)
        except ModelwrightError as error:
            yield str(error)
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
            remedy = f"pip install '{spec.needs}'" if spec.needs else "ask its author, or choose another one"
            yield f"{spec.kind} {spec.name!r} cannot be imported: {answer['error']}: {remedy}"


def _specs(run: Run) -> Iterator[ComponentSpec]:
    config, plugins = run.config, run.plugins
    formats = dict.fromkeys([config.data.format, *(suite.format or config.data.format for suite in config.evaluate)])
    metrics = dict.fromkeys(metric_name(label) for suite in config.evaluate for label in suite.metrics)
    yield from (plugins.get(FormatSpec, name) for name in formats)
    yield plugins.get(TrainerSpec, config.train.trainer)
    yield from (plugins.get(MetricSpec, name) for name in metrics)
    if config.evaluate:
        yield plugins.get(EngineSpec, ENGINE)


def _outdated(needs: str) -> Iterator[str]:
    """Packages of one of this project's extras that are older than it asks for; absent ones fail at their import."""
    extra = re.fullmatch(r"modelwright\[([a-z]+)\]", needs)
    try:
        asked = metadata.requires("modelwright") or [] if extra else []
    except metadata.PackageNotFoundError:  # this is a copy of the sources
        return
    for requirement in asked:
        parts = re.match(r"([\w.-]+)(?:\[.*\])?\s*>=\s*([\d.]+).*extra == .([a-z]+)", requirement)
        if extra and parts and parts[3] == extra[1]:
            try:
                version = metadata.version(parts[1])
            except metadata.PackageNotFoundError:
                continue
            if _release(version) < _release(parts[2]):
                yield f"{parts[1]} is {version}, and {parts[2]} or later is needed: pip install --upgrade '{needs}'"


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def base_folder(run: Run, facts: Facts) -> Path | None:
    """The folder of a run's base, looked at; None for a model from scratch, and for one that is still to be downloaded.

    Raises:
        ModelwrightError: it is not there, or is no model.
    """
    source = run.config.model.base
    if source is None:
        return None
    if Path(source).is_absolute():
        folder, name = Path(source), str(source)
    elif "/" in source:
        try:
            model = fetch(source, BASE_FILES, only_cached=True)
        except UsageError:
            raise
        except ModelwrightError:
            if facts["hub"]["offline"]:
                raise
            return None
        folder, name = model.folder, model.address
    else:
        registered = resolve(run.registry, source)
        folder, name = run.registry.folder(registered), registered.address
    check_base_folder(folder, name)
    return folder


def _base(run: Run, facts: Facts) -> Iterator[str]:
    folder = base_folder(run, facts)
    if run.config.model.chat_template:
        read_template(run.config.model.chat_template)
    elif folder is not None:
        check_template(folder)
    yield from ()


def _data(run: Run, facts: Facts) -> Iterator[str]:
    config = run.config
    paths = [source.path for source in config.data.sources]
    paths += [suite.path for suite in config.evaluate] + list(config.data.quality.decontaminate_against)
    for path in dict.fromkeys(paths):
        if parse_builtin(path) is None and (facts["hub"]["offline"] or not path.startswith(HUB)):
            try:
                source_files(SourceConfig(path=path))
            except ModelwrightError as error:
                yield str(error)


def _quality(run: Run, _facts: Facts) -> Iterator[str]:
    if run.config.data.quality.verify_answers:
        verifying_metric(run.config, run.plugins).check()
    if run.config.data.quality.deduplicate == "near":
        check_datasketch()
    yield from ()


def _registry(run: Run, _facts: Facts) -> Iterator[str]:
    run.registry.find(run.config.name)
    yield from ()


def _gpus(run: Run, facts: Facts) -> Iterator[str]:
    """Of a run on a cluster, the GPUs are those of its nodes."""
    torch, driver, train = facts["torch"] or {}, facts["driver"] or {}, run.config.train
    gpus = torch.get("gpus", [])
    if "gpus" in torch and not gpus and driver.get("gpus"):
        yield (
            f"torch sees none of the {len(driver['gpus'])} GPUs here: {torch['why_no_gpu']}: install a build for this "
            f"driver ({driver['version']}): https://pytorch.org/get-started/locally"
        )
    if run.config.cluster is not None or not gpus:
        return
    launcher = run.plugins.get(TrainerSpec, train.trainer).launcher
    if launcher == "deepspeed" and train.processes != "auto" and train.processes > len(gpus):
        there = "is 1 GPU" if len(gpus) == 1 else f"are {len(gpus)} GPUs"
        yield f'[train] processes is {train.processes}, and there {there} here: set it to {len(gpus)} or "auto"'
    old = next((gpu["name"] for gpu in gpus if not gpu["bfloat16"]), None)
    if train.precision == "bfloat16" and old:
        yield f'[train] precision is "bfloat16", which {old} can only emulate, slowly: set it to "float32"'


def _deepspeed(run: Run, facts: Facts) -> Iterator[str]:
    deepspeed, build = facts["deepspeed"] or {}, facts["build"]
    if run.plugins.get(TrainerSpec, run.config.train.trainer).launcher != "deepspeed":
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
            yield f"DeepSpeed builds {_SHARED_MEMORY} when it begins on CPUs, which needs {remedy} on the path"


def _storage(_run: Run, facts: Facts) -> Iterator[str]:
    home = facts["home"]
    elsewhere = "set MODELWRIGHT_HOME to a folder on another one"
    if home["problem"]:
        yield f"{home['path']} {home['problem']}: set MODELWRIGHT_HOME to a folder that can be written to"
    elif home["locks"] not in ("yes", "this machine only"):
        yield f"{home['path']}: this file system gives no locks ({home['locks']}): {elsewhere}"


def _disk(run: Run, facts: Facts) -> Iterator[str]:
    """An adapter is small beside its base: its checkpoints are not counted."""
    home, keep = facts["home"], run.config.train.keep_checkpoints
    if run.config.adapter is not None:
        return
    scratch = run.config.model.scratch
    try:
        folder = None if scratch else base_folder(run, facts)
        count = _scratch_parameters(scratch) if scratch else parameter_count(folder) if folder else 0
    except (ModelwrightError, BadFolderError):
        return  # told where the base is looked at
    needed = _IN_CHECKPOINT * count * (1 + keep)
    if needed > home["free"]:
        yield (
            f"{keep} checkpoints and the one being written take {needed / _GB:.1f} GB, and {home['free'] / _GB:.1f} GB "
            f"are free at {home['path']}: free some, lower keep_checkpoints in [train], or set MODELWRIGHT_HOME to a "
            "folder on another disk"
        )


def _scratch_parameters(scratch: ScratchConfig) -> int:
    width, inner = scratch.hidden_size, scratch.intermediate_size or 4 * scratch.hidden_size
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return scratch.vocab_size * width + scratch.layers * layer + width


def _cluster(run: Run, facts: Facts) -> Iterator[str]:
    cluster, slurm = run.config.cluster, facts["slurm"]
    if cluster is None:
        return
    if slurm is None:
        yield (
            "[cluster] needs Slurm, and there is no sbatch on the path: submit on a login node of the cluster, or load "
            "Slurm's module there"
        )
        return
    if slurm["error"]:
        yield f"[cluster] needs Slurm, which does not answer: {slurm['error']}: ask the cluster's administrators"
        return
    names = list(dict.fromkeys(row["name"] for row in slurm["partitions"]))
    wanted = cluster.partition or next((row["name"] for row in slurm["partitions"] if row["default"]), None)
    rows = [row for row in slurm["partitions"] if row["name"] == wanted]
    if cluster.partition and not rows:
        yield f"[cluster] partition {wanted!r} is not there: name one of {', '.join(names)}"
    if not rows:
        return
    fit = sum(row["nodes"] for row in rows if row["gpus"] >= (cluster.gpus_per_node or 0))
    if cluster.nodes > fit:
        having = f" with {cluster.gpus_per_node} GPUs each" if cluster.gpus_per_node else ""
        yield f"[cluster] nodes is {cluster.nodes}, and partition {wanted} has {fit}{having}: lower it, or name another"


_LOOKS: tuple[Callable[[Run, Facts], Iterator[str]], ...] = (
    *(_packages, _components, _base, _data, _quality, _registry),
    *(_gpus, _deepspeed, _storage, _disk, _cluster),
)
