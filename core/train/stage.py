"""The train stage: give a worker its order, follow it, and know what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelwright.core.api import files
from modelwright.core.api.components import TrainerSpec
from modelwright.core.base import find_base
from modelwright.core.config import to_plain
from modelwright.core.processes import run_worker
from modelwright.core.stage import Run
from modelwright.core.train.launch import training_command

# Counts up when the same inputs give another model than before.
VERSION = 1

# Settings that change how the training is carried out, not what comes out of it.
_NOT_INPUTS = ("checkpoint_every", "keep_checkpoints")


class Train:
    """Tokens to a trained model."""

    name = "train"

    def inputs(self, run: Run) -> dict[str, Any]:
        """The tokens, the beginning, the settings and the trainer's version."""
        values = to_plain(run.config)
        base = find_base(run)
        spec = run.plugins.get(TrainerSpec, run.config.train.trainer)
        return {
            "version": VERSION,
            "prepared": run.outputs("prepare")["digest"],
            "model": values["model"] | {"base": base and base.digest},
            "max_length": run.config.data.tokens.max_length,
            "train": {key: value for key, value in values["train"].items() if key not in _NOT_INPUTS},
            "trainer": run.plugins.origin(spec),
            "seed": run.config.seed,
        }

    def missing(self, run: Run, outputs: Mapping[str, Any]) -> str | None:  # noqa: ARG002 - the protocol's signature
        """The trained model's folder, where it is gone."""
        config = run.folder.stage(self.name) / "model" / "config.json"
        return None if config.is_file() else str(config.parent)

    def unfinished(self, run: Run, fingerprint: str) -> str | None:
        """The newest checkpoint of this very training."""
        folder = run.folder.stage(self.name)
        order = files.read_json(folder / "order.json")
        checkpoints = sorted((folder / "checkpoints").glob("step-*"))
        if order is None or order["fingerprint"] != fingerprint or not checkpoints:
            return None
        return f"interrupted; resumes after step {int(checkpoints[-1].name.removeprefix('step-'))}"

    def work(self, run: Run, fingerprint: str, emit: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:
        """Start the worker, or resume what a killed one left."""
        folder = run.folder.stage(self.name)
        order = files.read_json(folder / "order.json")
        if order is not None and order["fingerprint"] != fingerprint:
            run.folder.forget(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(folder)
        base = find_base(run)
        files.write_json(folder / "order.json", {"fingerprint": fingerprint, "base": base and str(base.folder)})
        spec = run.plugins.get(TrainerSpec, run.config.train.trainer)
        command = training_command(spec.launcher, run.config.train, run.folder)
        emit("starting", {"command": command, "log": str(run.folder.log(self.name))})
        outputs = run_worker(run, self.name, command)
        return outputs | {"base": base.digest if base else "scratch", "parent": base and base.parent}
