"""The train stage: what its result depends on, its worker's processes, and what they made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attrs import asdict, fields, frozen

from modelwright.core.api import files
from modelwright.core.api.components import TrainerSpec
from modelwright.core.api.errors import ModelwrightError, StopRequested
from modelwright.core.config import to_plain
from modelwright.core.runs.events import read_events
from modelwright.core.runs.stage import Run
from modelwright.core.runs.supervisor import KILLED, WorkerDiedError, run_worker
from modelwright.core.stages.train.external_launcher import launcher_process
from modelwright.core.stages.train.launch import (
    Launch,
    has_not_advanced,
    launch_of_one,
    node_that_failed,
    training_launch,
)
from modelwright.core.stages.train.report import summary, write_report

# Increased when the same inputs give another model than before.
VERSION = 3

# Settings that change how the training runs, but not its result.
_NOT_INPUTS = (
    "checkpoint_every",
    "gradient_checkpointing",
    "keep_checkpoints",
    "micro_batch_size",
    "on_bad_step",
    "preflight",
    "processes",
)


@frozen
class Train:
    """Tokens to a trained model.

    Attributes:
        kill_after: the worker kills itself after the event of this step, to test how it resumes; a signal from here
            would come many steps late.
    """

    kill_after: int | None = None

    name = "train"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The tokens, the initial model, the settings and the trainer's version."""
        values = to_plain(run.config)
        # The template's text is in the tokenizer that made the tokens; its path does not matter.
        model = {key: value for key, value in values["model"].items() if key != "chat_template"}
        spec = run.plugins.get(TrainerSpec, run.config.training.trainer)
        adapter = {"adapter": values["adapter"]} if "adapter" in values else {}
        return adapter | {
            "version": VERSION,
            "prepared": run.outputs("prepare")["digest"],
            "model": model | {"base": run.base and run.base.digest},
            "max_length": run.config.data.tokens.max_length,
            "train": _inputs(values["train"], spec.options),
            "trainer": run.plugins.origin(spec),
            "seed": run.config.seed,
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:
        """The first of the trained model's files that is missing."""
        file = files.missing_file(run.folder.stage(self.name) / "model", outputs["files"])
        return None if file is None else str(file)

    def unfinished(self, run: Run, fingerprint: str) -> str | None:
        """The newest checkpoint of this training, if it was interrupted."""
        order = _read_order(run.folder.stage(self.name))
        events = read_events(run.folder.events, stage=self.name)
        steps = [event.data["step"] for event in events if event.kind == "checkpoint"]
        if order is None or order["fingerprint"] != fingerprint or not steps:
            return None
        return f"interrupted; resumes after step {steps[-1]}"

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:
        """Start the worker, which resumes from the checkpoints of an earlier one.

        Raises:
            UsageError: the batch size is larger than the number of sequences.
        """
        prepared = run.outputs("prepare")
        packs = prepared["packs"]
        run.config.training.sequences_in_a_step(packs["packs"] if packs else prepared["rows"])
        folder = run.folder.stage(self.name)
        order = _read_order(folder)
        if order is None or order["fingerprint"] != fingerprint:
            run.folder.forget(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(folder)
        base = run.base
        order = {
            "fingerprint": fingerprint,
            "base": base and {**asdict(base), "folder": str(base.folder)},
            "kill_after": self.kill_after,
        }
        files.write_json(folder / "order.json", order)
        launch = _launch(run, emit)
        emit("starting", {"command": launch.command, "log": str(run.folder.log(self.name))})
        gather = run.gather and partial(run.gather, lambda text: emit("notice", {"text": text}))
        outputs = _carry_out(run, launch, gather)
        events = read_events(run.folder.events, stage=self.name)
        write_report(folder, events)
        outputs["training"] |= summary(events)
        return outputs | {"base": base.digest if base else "scratch", "parent": base and base.parent}


def _launch(run: Run, emit: Callable[[str, Mapping[str, Any]], None]) -> Launch:
    """How this runner starts the training, or only its own process of it if a launcher started several runners."""
    settings = run.config.training
    here = launcher_process() if run.gather else None
    if here is None:
        spec = run.plugins.get(TrainerSpec, settings.trainer)
        return training_launch(run.folder, spec.launcher, settings.processes, run.config.cluster)
    if settings.processes not in (1, "auto", here.on_machine or here.size):  # 1 is the default
        ignored = f"[train] processes = {settings.processes} is ignored"
        emit("notice", {"text": f"{ignored}: the launcher started {here.size} processes"})
    return launch_of_one(run.folder, here)


def _carry_out(run: Run, launch: Launch, gather: Callable[[], None] | None) -> dict[str, Any]:
    """Run the processes; on several nodes, name the one that failed first, and end a job that makes no progress."""
    log = run.folder.log(Train.name)
    begin = log.stat().st_size if log.exists() else 0
    try:
        return run_worker(run, Train.name, launch.command, launch.environment, before=gather)
    except StopRequested as error:
        stuck = has_not_advanced(run.folder)
        raise (ModelwrightError(stuck) if stuck else error) from error
    except ModelwrightError as error:
        node = node_that_failed(log, begin)
        # Processes that lost a killed one can report only that; srun's log has the node.
        if node is None or not (isinstance(error, WorkerDiedError) or KILLED in node):
            raise
        raise WorkerDiedError(f"{Train.name}: {node}; see {log}") from error


def _inputs(settings: Mapping[str, Any], options: type[Any]) -> dict[str, Any]:
    """The settings in `[train]` that change the result beyond rounding; a trainer's options are marked for this."""
    inputs = {key: value for key, value in settings.items() if key not in _NOT_INPUTS}
    how = {field.name for field in fields(options) if field.metadata.get("changes_result") is False}
    inputs["options"] = {key: value for key, value in inputs.get("options", {}).items() if key not in how}
    return inputs


def _read_order(folder: Path) -> dict[str, Any] | None:
    """The order for the training in a folder, as `work` wrote it.

    Raises:
        DamagedError: it cannot be read, so it is unknown which training the checkpoints belong to.
    """
    remedy = "the checkpoints beside it cannot be used; train again with --only train --fresh"
    return files.read_state(folder / "order.json", {"fingerprint": str}, remedy=remedy)
