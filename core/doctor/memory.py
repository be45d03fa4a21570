"""What a run takes on a device that need not be here: a table for each way to train it, and what fits.

The sizes come from the base's config.json, which a trainer reads in a process of its own; the bytes from the formula
that the preflight of a training uses (`core.api.memory`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, UsageError
from modelwright.core.api.hf_folder import CONFIG
from modelwright.core.api.memory import CONTEXT, Format, MemorySettings, ModelShape, most_tokens, training_memory
from modelwright.core.doctor.machine import imported
from modelwright.core.models.hf_folder import token_count
from modelwright.core.runs.stage import Run
from modelwright.core.stages.requirements import memory_settings, planned_folder
from modelwright.core.stages.train.worker import scratch_config

_DEVICE = re.compile(r"(?P<size>\d+(?:\.\d+)?) ?(?P<unit>[GM]i?B)(?: ?[x×] ?(?P<count>\d+))?")
_UNITS = {"GB": 10**9, "MB": 10**6, "GiB": 2**30, "MiB": 2**20}
# Of a frozen base: what its weights can be held in.
_FROZEN: tuple[Format, ...] = ("bfloat16", "nf4")
_CHECKPOINTING = {"off": "", "on": ", gradient checkpointing", "offload": ", gradient checkpointing in main memory"}


@frozen
class Device:
    """Devices of one kind: bytes of memory of each, and their number."""

    memory: int
    count: int


@frozen(kw_only=True)
class Way:
    """A way to train a model, and what it takes on one device.

    Attributes:
        label: what is set, such as "adapter on nf4, ZeRO-2".
        configured: whether the run file says so.
        shape: of the model.
        how: it is trained.
        room: bytes of the device that a training can have.
        sequence: tokens of the longest sequence.
    """

    label: str
    configured: bool = False
    shape: ModelShape
    how: MemorySettings
    room: int
    sequence: int

    @property
    def lacks(self) -> int:
        """How many bytes the device has too few; 0 if it fits."""
        return max(0, training_memory(self.shape, self.how).device - self.room)

    def facts(self) -> dict[str, Any]:
        """The row of the table, in bytes and tokens."""
        memory = training_memory(self.shape, self.how)
        return {
            "label": self.label,
            "configured": self.configured,
            "micro_batch_tokens": self.how.tokens,
            **asdict(memory),
            "device": memory.device,
            "fits": not self.lacks,
            "most_tokens": most_tokens(self.shape, self.how, self.room, sequence=self.sequence),
        }


def read_device(text: str) -> Device:
    """The devices that `--device` means: "24GB", "80GBx16", "40GiB".

    Raises:
        UsageError: it means none.
    """
    match = _DEVICE.fullmatch(text.strip())
    memory, count = (round(float(match["size"]) * _UNITS[match["unit"]]), int(match["count"] or 1)) if match else (0, 0)
    if not memory or not count:
        raise UsageError(
            f"--device {text!r}: expected the memory of a GPU, such as 24GB, and how many there are, such as 80GBx16"
        )
    return Device(memory, count)


def ways(run: Run, device: Device) -> list[Way]:
    """The ways to train the model of a run on such devices: first as it is configured, then the others.

    The others take one sequence of `max_length` tokens at a time; those with less work and less rounding come first.

    Raises:
        UsageError: the trainer has no figures, or the base's config.json is not on this machine.
        ModelwrightError: the base's config cannot be used.
    """
    shapes = _shapes(run)
    spec = run.plugins.get(TrainerSpec, run.config.training.trainer)
    sequence, room = run.config.data.tokens.max_length, device.memory - CONTEXT
    kind = "adapter" if run.config.adapter else "full"
    own = memory_settings(run.config, launcher=spec.launcher, ranks=device.count)
    stage = f"ZeRO-{own.stage}" if spec.launcher == "deepspeed" else "one process"
    first = Way(
        label=f"this run: {_named(kind, own)}, {stage}{_offloaded(own)}{_CHECKPOINTING[own.checkpointing]}",
        configured=True,
        shape=shapes[kind],
        how=own,
        room=room,
        sequence=sequence,
    )
    others = (
        Way(label=label, shape=shapes[kind], how=evolve(how, tokens=sequence), room=room, sequence=sequence)
        for kind in ("full", "adapter")
        for label, how in possible(kind, device.count)
    )
    return [first, *others]


def possible(kind: str, count: int) -> Iterator[tuple[str, MemorySettings]]:
    """Every way to train all weights ("full") or an "adapter" on this many devices, with what it is called."""
    for held in _FROZEN if kind == "adapter" else ("bfloat16",):
        for place, how in _places(count):
            if how.stage == 3 and held not in ("float32", "bfloat16"):
                continue  # ZeRO-3 cannot split packed weights
            for checkpointing in ("off", "on"):
                one = evolve(how, frozen=held, checkpointing=checkpointing)
                yield f"{_named(kind, one)}, {place}{_CHECKPOINTING[checkpointing]}", one


def _places(count: int) -> Iterator[tuple[str, MemorySettings]]:
    low = MemorySettings(trained="bfloat16", precision="bfloat16", ranks=count)
    if count == 1:
        yield "one process", MemorySettings(precision="bfloat16")
    for stage in () if count == 1 else (0, 1, 2, 3):
        yield f"ZeRO-{stage}", evolve(low, stage=stage)
    yield "ZeRO-2, optimizer in main memory", evolve(low, stage=2, offload="optimizer")
    yield "ZeRO-3, all in main memory", evolve(low, stage=3, offload="all")


def _named(kind: str, how: MemorySettings) -> str:
    return "all weights" if kind == "full" else f"adapter on {how.frozen}"


def _offloaded(how: MemorySettings) -> str:
    return {"none": "", "optimizer": ", optimizer in main memory", "all": ", all in main memory"}[how.offload]


def does_not_fit(found: Sequence[Way], device: Device) -> str | None:
    """One line if the run as configured does not fit, with what would; None if it does."""
    own = found[0]
    if not own.lacks:
        return None
    count = "" if device.count == 1 else f" × {device.count}"
    # Among those that train the same, before those that train less.
    same = [way for way in found[1:] if not way.lacks and way.shape == own.shape]
    fitting = same or [way for way in found[1:] if not way.lacks]
    remedy = f"what fits is {fitting[0].label}" if fitting else "nothing else fits either: use more or larger GPUs"
    return (
        f"not enough memory on {device.memory / 1e9:.1f} GB{count}: with micro-batches of {own.how.tokens} tokens a "
        f"process takes {training_memory(own.shape, own.how).device / 1e9:.1f} GB, "
        f"{own.lacks / 1e9:.1f} GB too much: {remedy}"
    )


def _shapes(run: Run) -> Mapping[str, ModelShape]:
    """The sizes of the run's model with all weights trained ("full") and with an "adapter"."""
    config = run.config
    spec = run.plugins.get(TrainerSpec, config.training.trainer)
    if spec.shapes is None:
        raise UsageError(f"trainer {spec.name!r} has no memory table: it says nothing of the sizes of its models")
    with tempfile.TemporaryDirectory() as made:
        folder, tokens = planned_folder(run), None
        if folder is None:
            assert config.model.scratch is not None
            folder, tokens = Path(made), config.model.scratch.vocab_size
            length = config.data.tokens.max_length
            text = scratch_config(config.model.scratch, vocabulary=tokens, stops=[0], max_length=length)
            (folder / CONFIG).write_text(json.dumps(text), encoding="utf-8")
        elif (folder / "tokenizer.json").is_file():
            tokens = token_count(folder)
        arguments = {
            "folder": str(folder),
            "adapter": config.adapter and asdict(config.adapter),
            "vocabulary": tokens,
            "trust_remote_code": config.model.trust_remote_code,
        }
        answer = imported(spec.shapes, json.dumps(arguments))
    if "error" in answer:
        raise ModelwrightError(f"the sizes of {config.name}'s model are not known: {answer['error']}")
    return {kind: ModelShape(**values) for kind, values in answer.items()}
