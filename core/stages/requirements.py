"""What a run needs before it starts: packages, components, base, template, data, registry, disk and memory.

One list: a run checks it before its first stage, `--dry-run` before its plan, and `modelwright doctor` at any time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from attrs import evolve, frozen

from modelwright.core.api.components import FormatSpec, TrainerSpec
from modelwright.core.api.errors import ModelwrightError, SeveralErrors, UsageError
from modelwright.core.api.files import DamagedError, sizes
from modelwright.core.api.free_memory import MachineMemory, machine_memory
from modelwright.core.api.hf_folder import CONFIG
from modelwright.core.api.memory import (
    OPTIMIZER_STATES,
    PROGRAM,
    MemorySettings,
    ModelShape,
    check_checkpoint_room,
    reading_memory,
    training_memory,
)
from modelwright.core.api.train_settings import OF_BITSANDBYTES
from modelwright.core.api.training import QUANTIZERS
from modelwright.core.chat.templates import read_template
from modelwright.core.chat.tokenizer_files import check_template
from modelwright.core.config.data import SourceConfig
from modelwright.core.config.schema import RunConfig, ScratchConfig
from modelwright.core.extras import check_installed
from modelwright.core.models.base import BASE_FILES
from modelwright.core.models.gguf_base import cached, is_gguf
from modelwright.core.models.hf_folder import BadFolderError, check_base_folder, parameter_count
from modelwright.core.models.hub import fetch, offline
from modelwright.core.runs.stage import Run
from modelwright.core.stages.evaluate.suites import suite_checks
from modelwright.core.stages.prepare.quality import check_quality, test_sets
from modelwright.core.stages.prepare.sources import check_source, on_hub

# The packages that a stage cannot do without.
_PACKAGES = {
    "prepare": ("tokenizers", "jinja2", "pyarrow"),
    "train": ("torch", "transformers", "safetensors", "tokenizers", "jinja2", "pyarrow"),
    "evaluate": ("torch", "transformers", "tokenizers", "jinja2"),
}
# Where there is one of these, or on a Mac, a training may be on a GPU, whose memory the trainer checks.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

About = Literal["packages", "component", "data", "base", "template", "registry", "disk", "memory"]


@frozen
class Requirement:
    """One thing that a run needs.

    Attributes:
        about: what kind of thing it is.
        check: raises a ModelwrightError if the run does not find it.
    """

    about: About
    check: Callable[[], object]


def requirements(
    run: Run, stages: Sequence[str], *, registry: bool = True, download: bool = True
) -> Iterator[Requirement]:
    """What the stages of a run need; nothing is written.

    Args:
        run: the run.
        stages: the stages that are to be done.
        registry: whether the registry must answer, even if only later stages use it.
        download: whether the base and data may be downloaded from the hub. If not, and there is a network, what is not
            in the hub's cache counts as there.
    """
    config, base = run.config, partial(_base_folder, run, download=download)
    stages = [stage for stage in stages if run.has(stage)]
    yield from (Requirement("packages", partial(check_packages, stage)) for stage in stages)
    if "prepare" in stages:
        yield from _to_prepare(run, download=download)
    if "train" in stages:
        yield Requirement("component", run.plugins.get(TrainerSpec, config.training.trainer).check)
        if config.training.optimizer in OF_BITSANDBYTES:
            what = f'[train] optimizer = "{config.training.optimizer}"'
            yield Requirement("packages", partial(check_installed, "bitsandbytes", what=what, extra="quantization"))
        if config.model.quantization is not None:
            what, extra = f'[model] quantization = "{config.model.quantization}"', "quantization"
            package = QUANTIZERS[config.model.quantization]
            yield Requirement("packages", partial(check_installed, package, what=what, extra=extra))
    if "evaluate" in stages and _here([suite.source for suite in config.evaluate], download=download):
        yield from (Requirement("data", look) for look in suite_checks(config.evaluate, run.plugins, seed=config.seed))
    yield Requirement("base", base)
    if "prepare" in stages:
        yield Requirement("template", lambda: _check_template(run, base))
    if registry:
        yield Requirement("registry", lambda: run.registry.find(config.name))
    if "train" in stages and config.adapter is None and not _trained(run):
        yield Requirement("disk", lambda: _check_disk(run, base))
        if config.cluster is None:
            yield Requirement("memory", lambda: _check_memory(run, base))


def _to_prepare(run: Run, *, download: bool) -> Iterator[Requirement]:
    config = run.config
    yield Requirement("component", run.plugins.get(FormatSpec, config.data.format).check)
    against = [source for _, source, _, _ in test_sets(config)]
    if any(source.dataset for source in (*config.data.sources, *against)):
        yield Requirement("packages", partial(check_installed, "datasets", what="a source with dataset"))
    if _here(against, download=download):
        yield Requirement("data", partial(check_quality, config, run.plugins))
    for source in config.data.sources:
        if _here([source], download=download):
            yield Requirement("data", partial(check_source, source))


def check_packages(stage: str) -> None:
    """Check that the packages are installed that a stage cannot do without.

    Raises:
        MissingDependencyError: at least one is not.
    """
    check_installed(*_PACKAGES.get(stage, ()), what=stage)


def unmet(needed: Iterable[Requirement]) -> list[ModelwrightError]:
    """What is not there, each once."""
    errors: dict[str, ModelwrightError] = {}
    for requirement in needed:
        try:
            requirement.check()
        except SeveralErrors as error:
            errors |= {str(one): one for one in error.errors if str(one) not in errors}
        except ModelwrightError as error:
            errors.setdefault(str(error), error)
    return list(errors.values())


def _here(sources: Iterable[SourceConfig], *, download: bool) -> bool:
    return download or offline() or not any(map(on_hub, sources))


def _base_folder(run: Run, *, download: bool) -> Path | None:
    """The folder of the base, checked; None if the model is made from scratch, or the base yet to be got."""
    source = run.config.model.base
    if source and not download and is_gguf(Path(source)):
        return cached(Path(source), f"[model] base {source}")
    if source and not download and not offline() and "/" in source and not Path(source).is_absolute():
        try:
            model = fetch(source, BASE_FILES, only_cached=True)
        except SeveralErrors:
            raise
        except ModelwrightError:
            return None
        check_base_folder(model.folder, model.address)
        return model.folder
    return run.base.folder if run.base else None


def _check_template(run: Run, base: Callable[[], Path | None]) -> None:
    if run.config.model.chat_template:
        read_template(run.config.model.chat_template)
    elif (folder := _or_none(base)) is not None:
        check_template(folder)


def _or_none(base: Callable[[], Path | None]) -> Path | None:
    """The base's folder; None also if there is something wrong with it, which has a requirement of its own."""
    try:
        return base()
    except ModelwrightError:
        return None


def _trained(run: Run) -> bool:
    try:
        return run.folder.done("train") is not None
    except DamagedError:
        return False


def _parameters(run: Run, base: Callable[[], Path | None]) -> int:
    """Number of the model's weights; 0 if nobody knows yet."""
    if run.config.model.scratch:
        return _scratch_parameters(run.config.model.scratch)
    folder = _or_none(base)
    try:
        return parameter_count(folder) if folder else 0
    except BadFolderError:
        return 0


def _scratch_parameters(scratch: ScratchConfig) -> int:
    width, inner = scratch.hidden_size, scratch.intermediate_size or 4 * scratch.hidden_size
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return scratch.vocab_size * width + scratch.layers * layer + width


def _check_disk(run: Run, base: Callable[[], Path | None]) -> None:
    home = run.folder.path
    there = next(place for place in (home, *home.parents) if place.is_dir())
    checkpoints = run.folder.stage("train") / "checkpoints"
    written = sum(sizes(checkpoints).values()) if checkpoints.is_dir() else 0
    holdout = run.config.data.holdout.fraction > 0
    check_checkpoint_room(there, _parameters(run, base), run.config.training, holdout=holdout, written=written)


def _check_memory(run: Run, base: Callable[[], Path | None]) -> None:
    """On CPUs only: the least that any trainer takes on this machine, however it shards the model."""
    if sys.platform == "darwin" or any(map(os.path.exists, _GPU_DEVICES)):
        return
    count, memory = _parameters(run, base), machine_memory()
    needed = training_memory(ModelShape(parameters=count, trainable=count), MemorySettings()).states
    if needed > memory.usable:
        raise ModelwrightError(
            f"not enough memory to train on CPUs: weights, gradients and optimizer take {needed / 1e9:.1f} GB, and "
            f"{_place(memory)} has {memory.usable / 1e9:.1f} GB: train a smaller model, or an [adapter]"
        )


def _place(memory: MachineMemory) -> str:
    return "this machine" if memory.usable == memory.machine else "the control group of this job"


def memory_settings(config: RunConfig, *, launcher: str, ranks: int) -> MemorySettings:
    """What a run's settings mean for the memory of one of its processes on a GPU.

    Args:
        config: of the run.
        launcher: of its trainer.
        ranks: number of processes that train together.
    """
    settings, options, zero = config.training, config.training.options, launcher == "deepspeed"
    low = settings.precision != "float32"
    stage = getattr(options, "zero_stage", 0) if zero else 0
    held: Literal["float32", "bfloat16"] = "bfloat16" if low and config.model.dtype != "float32" else "float32"
    return MemorySettings(
        trained="bfloat16" if low and stage else "float32",
        frozen=config.model.quantization or held,
        precision="bfloat16" if low else "float32",
        gradient=4 if zero else None,
        states=OPTIMIZER_STATES[settings.optimizer],
        stage=stage,
        ranks=ranks if zero else 1,
        offload=getattr(options, "offload", "none"),
        tokens=_micro_batch(config, getattr(options, "micro_batch_tokens", 0), ranks=ranks),
        checkpointing=settings.gradient_checkpointing,
    )


def _micro_batch(config: RunConfig, most: int, *, ranks: int) -> int:
    """The tokens of the largest micro-batch, if every sequence is as long as it may be."""
    length, settings = config.data.tokens.max_length, config.training
    sequences = settings.micro_batch_size or max(1, most // length)
    return length * min(sequences, -(-settings.batch_size // ranks))


def planned_folder(run: Run) -> Path | None:
    """The folder with the config.json of a run's base, which need not have weights; None if there is no base.

    Raises:
        UsageError: it is not on this machine.
        ModelwrightError: the registry or the hub's cache does not have it.
    """
    source = run.config.model.base
    if source is None:
        return None
    path = Path(source)
    if path.is_absolute() and (path / CONFIG).is_file():
        return path
    try:
        folder = _base_folder(run, download=False)
    except UsageError as error:
        raise UsageError(f"{error}; the memory table needs its {CONFIG} alone") from error
    if folder is None:
        raise UsageError(
            f"[model] base {source}: it is not in the hub's cache yet: download its {CONFIG} for the table"
        )
    return folder


def check_job_memory(run: Run, limit: int, *, processes: int, gpus: bool) -> None:
    """Check that a job of a cluster gets the memory that its training takes on one node, at the least.

    On GPUs that is the program, and the weights as each process reads them; on CPUs the whole training.

    Args:
        run: the run.
        limit: bytes of main memory of the job on a node.
        processes: training processes on a node.
        gpus: whether they compute on GPUs.

    Raises:
        UsageError: the limit is below it.
    """
    config = run.config
    launcher = run.plugins.get(TrainerSpec, config.training.trainer).launcher
    count = _parameters(run, partial(_base_folder, run, download=False))
    how = memory_settings(config, launcher=launcher, ranks=processes)
    # How many weights an adapter has is not known without torch; they are few.
    trainable = count if config.adapter is None else 0
    needed = training_memory(ModelShape(parameters=count, trainable=trainable), evolve(how, tokens=0))
    reading = reading_memory(count, stage=how.stage)
    each = PROGRAM + max(reading, needed.host + (0 if gpus else needed.states))
    if processes * each > limit:
        fitting = (limit - 1) // each
        fewer = f", or start {fitting} on each node" if fitting else ""
        raise UsageError(
            f"{config.name}: [cluster] memory is {limit / 2**30:.1f}G, but each of {processes} processes on a node "
            f"takes {each / 2**30:.1f}G to {'read' if each == PROGRAM + reading else 'train'} the model: set it to "
            f"{-(-processes * each // 2**30)}G or more{fewer}"
        )
