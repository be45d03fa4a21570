"""A run's events: JSON lines with a versioned envelope, one file for each process that writes.

Progress on the terminal, loss curves and trackers all read these files; while a run works, nothing else passes between
its processes. `KINDS` declares every kind of event with its fields; the reference and a test are made from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, field, fields_dict, frozen

from modelwright.core.api.files import appended_tables

VERSION = 1

# The roles of those who write.
RUNNER = "runner"
WORKER = "worker"


@frozen(kw_only=True)
class Event:
    """One line of an events file.

    Attributes:
        v: version of this envelope.
        time: when it happened, in UTC, ISO 8601.
        run: name of the run.
        stage: the stage that it belongs to.
        writer: name of its file, `TIME-STAGE-ROLE-PID`; every attempt at a stage writes a new file.
        kind: what happened.
        data: the fields of this kind.
    """

    v: int
    time: str
    run: str
    stage: str
    writer: str
    kind: str
    data: Mapping[str, Any]

    @property
    def role(self) -> str:
        """Who wrote it: "runner" or "worker"."""
        return self.writer.split("-")[2]


_KEYS = frozenset(fields_dict(Event))


@frozen
class Kind:
    """A kind of event: what it says, and the fields of its data.

    Attributes:
        meaning: a sentence.
        fields: the fields that every such event has, with what each means and its unit.
        sometimes: fields that only some of these events have.
    """

    meaning: str
    fields: Mapping[str, str] = field(factory=dict)
    sometimes: Mapping[str, str] = field(factory=dict)


_STEP = "Optimizer step, counted from 1."
_HOLDOUT_LOSS = "Mean loss over the trained tokens of the held-out data, in nats; null if there is none."
_SUITE = "Name of the test suite."
_OF_SHARD = {"shard": "The shard that this job prepares, as `2/4`; only if several jobs share the stage."}
_OF_MODEL = {"model": "Address of the model; only in an evaluation without a run."}
_SHARES = {
    "tokens": "Number of training tokens.",
    "trained_by_role": "Number of trained tokens by role of the message, then by kind of span.",
    "untrained": "Number of examples left out because nothing in them is trained.",
    "too_long": "Number of examples dropped because they exceed `[data.tokens] max_length`.",
    "anomalies": "Number of examples by name of what is wrong with their labels.",
}

# Every event that this program writes. A trainer of someone else may write kinds and fields of its own.
KINDS: Mapping[str, Kind] = {
    # Every stage
    "begun": Kind("A stage begins.", {}, {"fingerprint": "Digest of all that its result depends on.", **_OF_SHARD}),
    "job": Kind(
        "The stage runs in a job of a cluster.",
        {
            "job": "Id of the job; `ARRAY_TASK` for a task of an array.",
            "nodes": "Names of its nodes, in Slurm's short form.",
            "restarts": "How many times the job was queued again.",
        },
        _OF_SHARD,
    ),
    "starting": Kind(
        "A worker process is being started.",
        {"command": "Its command line, as a list.", "log": "The file that its output goes to."},
    ),
    "notice": Kind("Something that a person should know.", {"text": "One line."}),
    "ended": Kind(
        "A stage has ended.",
        {"state": "`done`, or the class of the error, such as `StopRequested`."},
        {
            "outputs": "What the stage gives to later stages, if it is done.",
            "error": "The error's message, if it is not.",
            **_OF_SHARD,
        },
    ),
    # prepare
    "reading": Kind("Rows are being read.", {"rows": "Number of rows read so far."}, _OF_SHARD),
    "rendering": Kind(
        "Examples are being rendered to tokens.",
        {"rendered": "Number of examples rendered so far.", "examples": "Number of examples."},
        _OF_SHARD,
    ),
    "shard": Kind(
        "A job has prepared its share of the data.",
        {
            "shard": "Which share, as `2/4`.",
            "shards": "Number of shards that this job has prepared.",
            "of": "Number of shards in all of the data.",
            "rows": "Number of rows read.",
            "examples": "Number of examples read.",
        },
    ),
    "prepared": Kind(
        "The data is prepared.",
        {
            "read": "Number of rows read.",
            "examples": "Number of examples after the checks of data quality.",
            "detected": "Number of rows by what they were read as.",
            "rejected": "Number of rows that could not be read.",
            "reasons": "Number of rejected rows by reason.",
            "notices": "Lines that a person should know, as in the event `notice`.",
            "removed": "Number of examples removed by each check of data quality.",
            "rows": "Number of examples for training.",
            "holdout_rows": "Number of examples held out.",
            "holdout_prompts": "Number of prompts held out, each with all of its examples.",
            "holdout_shared": "Number of held-out examples that share a later user turn with training examples.",
            **_SHARES,
            "trained_tokens": "Number of trained tokens.",
            "longest": "Length of the longest training example, in tokens.",
            "undrawn": "Number of examples left out by the sampling weight of their source.",
            "texts": "Number of training examples that are plain text.",
            "shown": "For each anomaly, the first example that has it, as `file:line`.",
            "packs": "If examples are packed: the number of packs and what they hold; otherwise null.",
        },
    ),
    "labels": Kind(
        "Which tokens are trained, with a few examples to look at.",
        {**_SHARES, "examples": "A few examples, each in pieces of text that are trained or not."},
    ),
    # train
    "started": Kind(
        "The training loop begins, from the first step or from a checkpoint.",
        {
            "steps": "Number of optimizer steps planned.",
            "examples": "Number of training examples.",
            "sequences": "Number of sequences: packs, or else examples.",
            "skipped": "Number of examples in which nothing is trained.",
            "tokens": "Number of training tokens.",
            "epochs": "Passes over the data.",
            "processes": "Number of processes.",
            "attention": "The implementation of attention.",
            "parameters": "Number of the model's parameters.",
            "trainable": "Number of parameters that are trained.",
            "peak_flops": "Speed of the device in a matrix product, measured, in operations per second.",
            "device": "The device of the first process.",
            "precision": "Number format of the forward and backward pass.",
        },
        {
            "threads": "Number of CPU threads of each process.",
            "zero_stage": "DeepSpeed's ZeRO stage.",
            "adapter_parameters": "With `[adapter]`: number of trained parameters by the layers that they adapt.",
            "adapted": "With `[adapter]`: number of the base's parameters that have an adapter or are trained whole.",
            "unadapted": "With `[adapter]`: number of the base's other parameters, by name.",
        },
    ),
    "preflight": Kind(
        "The rehearsal before the first step passed.",
        {
            "seconds": "How long it took.",
            "checkpoint_bytes": "The most bytes that a checkpoint takes.",
            "micro_batch_tokens": "Positions of the largest micro-batch that was tried, padding included.",
            "predicted_memory": "The formula's peak in bytes on the device of a process, without the program itself.",
            "memory": "The peak that was measured in bytes: of the GPU, or of the whole process on a CPU.",
        },
    ),
    "resumed": Kind("The training continues from a checkpoint.", {"step": "Steps done before; 0 starts over."}),
    "step": Kind(
        "An optimizer step is done.",
        {
            "step": _STEP,
            "steps": "Number of optimizer steps planned.",
            "loss": "Mean loss over the trained tokens, in nats; null if the step was dropped.",
            "grad_norm": "2-norm of the gradient before clipping; null if the step was dropped.",
            "learning_rate": "The learning rate of this step.",
            "tokens": "Number of tokens in the step, over all processes.",
            "trained_tokens": "Number of those tokens that the loss counts.",
            "order": "Digest of which sequences the step trained on.",
            "by_source": "Mean loss by source of the data, in nats; empty if there is one source.",
            "seconds": "How long the step took.",
            "mfu": "Model FLOPs utilization, 0 to 1: the share of the device's speed that the step reached. Missing if "
            "the step was faster than the measured speed.",
            "memory": "Peak memory so far, in bytes: the GPU's, or the process's on a CPU.",
        },
    ),
    "bad_step": Kind(
        "A step's gradient was dropped.",
        {"step": _STEP, "why": "What was wrong with its loss or gradient.", "examples": "Ids of its examples."},
    ),
    "holdout": Kind("The held-out data was measured.", {"step": _STEP, "loss": _HOLDOUT_LOSS}),
    "checkpoint": Kind("A checkpoint was written.", {"step": _STEP, "seconds": "How long it took."}),
    "checkpoint_rejected": Kind(
        "A damaged checkpoint was passed over.",
        {"checkpoint": "Name of its folder.", "reason": "What is wrong with it."},
    ),
    "best": Kind(
        "Early stopping chose a step's model as the result.",
        {"best_step": "The step with the lowest held-out loss.", "holdout_loss": _HOLDOUT_LOSS},
    ),
    "finished": Kind(
        "The training is complete.",
        {
            "step": "The step whose model is the result.",
            "tokens": "Number of tokens trained on, in all steps.",
            "loss": "Mean loss of the last step, in nats.",
            "skipped": "Number of steps that were dropped.",
            "holdout_loss": _HOLDOUT_LOSS,
            "seconds": "How long this process trained.",
        },
    ),
    # register
    "registered": Kind(
        "The model is in the registry.",
        {
            "name": "The model's name.",
            "version": "Its version number.",
            "digest": "The sha256 over its files.",
            "address": "`NAME@VERSION`.",
        },
    ),
    # evaluate
    "suite": Kind("A test suite begins.", {"suite": _SUITE, "examples": "Number of its examples."}, _OF_MODEL),
    "answered": Kind(
        "Examples are being answered.",
        {"suite": _SUITE, "answered": "Number of answers so far.", "examples": "Number of examples."},
        _OF_MODEL,
    ),
    "graded": Kind(
        "A test suite is graded.",
        {"suite": _SUITE, "metrics": "By metric: `value`, `low` and `high` of its 95 % interval, and `n` examples."},
        _OF_MODEL,
    ),
    "failed": Kind(
        "A model or one of its suites failed; the others go on.",
        {"suite": "Name of the suite; null if the model failed.", "error": "One line."},
        _OF_MODEL,
    ),
    # promote
    "promoted": Kind(
        "The alias points to the new version.",
        {"promoted": "true.", "alias": "Name of the alias.", "why": "The condition that holds."},
    ),
    "not promoted": Kind(
        "The alias stays where it is.", {"promoted": "false.", "why": "The clauses that do not hold, with the values."}
    ),
}


class EventWriter:
    """Appends one process's events to a file of its own.

    Every line is handed to the operating system at once: a killed process loses none, a machine without power may.
    """

    def __init__(self, folder: Path, *, run: str, stage: str, role: str = RUNNER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.stage = stage
        while True:
            self.writer = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{stage}-{role}-{os.getpid()}"
            try:
                self._file = (folder / f"{self.writer}.jsonl").open("x", encoding="utf-8", buffering=1)
            except FileExistsError:  # by a process of the same number on another machine
                continue
            break

    def emit(self, kind: str, data: Mapping[str, Any] | None = None) -> Event:
        """Write an event and return it."""
        event = Event(
            v=VERSION,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            run=self.run,
            stage=self.stage,
            writer=self.writer,
            kind=kind,
            data=dict(data or {}),
        )
        self._file.write(json.dumps(asdict(event), ensure_ascii=False) + "\n")
        return event

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EventTail:
    """Reads what is new in a folder of events files at each call of `poll`."""

    def __init__(self, folder: Path, *, from_now: bool = False) -> None:
        self.folder = folder
        self._offsets: dict[Path, int] = {}
        if from_now:
            self._offsets = {path: path.stat().st_size for path in folder.glob("*.jsonl")}

    def poll(self) -> list[Event]:
        """The events written since the last call, in the order of their times; an unfinished line waits.

        A line that is not an event, which a power failure may leave, is skipped.
        """
        events: list[Event] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            end = text.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + end
            rows = appended_tables(text[:end])
            events += (Event(**row) for row in rows if row.get("v") == VERSION and row.keys() == _KEYS)
        return sorted(events, key=lambda event: event.time)


def read_events(folder: Path, *, stage: str | None = None) -> list[Event]:
    """Every event of a run in order of time, without what a later attempt at a stage did over again.

    A writer whose first event is `resumed` continues after the step named there; one with `started` alone begins at the
    first step. Events of later steps that earlier writers of the same stage wrote are dropped.
    """
    events = list(_without_repeats(EventTail(folder).poll()))
    return [event for event in events if stage in (None, event.stage)]


def _without_repeats(events: list[Event]) -> Iterator[Event]:
    begins: dict[str, tuple[Event, int]] = {}
    for event in events:
        if event.kind == "resumed" or (event.kind == "started" and event.writer not in begins):
            begins[event.writer] = (event, event.data.get("step", 0))
    for event in events:
        step = event.data.get("step")
        repeated = step is not None and any(
            begin.stage == event.stage and begin.writer > event.writer and step > first
            for begin, first in begins.values()
        )
        if not repeated:
            yield event
