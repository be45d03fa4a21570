"""Several trainings, one after the other in the same processes, which take longer to start than to train."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from modelwright.core.api import Job, Trained
from modelwright.core.api.components import TrainerSpec
from modelwright.core.testing.trainer import Recorder
from modelwright.plugins.trainers import DeepSpeedOptions


@frozen(kw_only=True)
class Case:
    """One training of a series.

    Attributes:
        folder: its own folder, in that of the series; a case with the folder of an earlier one resumes it.
        options: of the trainer `deepspeed`.
        changes: other values of the job's attributes.
        stop_after: the step to stop after.
    """

    folder: str
    options: DeepSpeedOptions
    changes: Mapping[str, Any]
    stop_after: int | None = None


@frozen
class Cases:
    """The options of `Series`."""

    cases: tuple[Case, ...] = field(default=())


class Series:
    """A trainer that does one case after the other; `losses` reads what came out."""

    def __init__(self, options: Cases) -> None:
        self.cases = options.cases

    def train(self, job: Job) -> Trained:
        """Train all of them; returns the last one's outcome."""
        from modelwright.plugins.trainers.deepspeed.trainer import DeepSpeedTrainer

        for case in self.cases:
            recorder, folder = Recorder(stop_after=case.stop_after), job.folder / case.folder
            own = {"folder": folder, "output": folder / "model", "emit": recorder.emit, "stopping": recorder.stopping}
            trained = DeepSpeedTrainer(case.options).train(evolve(job, **own, **case.changes))
            if os.environ["RANK"] == "0":
                with (folder / "losses.jsonl").open("a") as file:
                    file.writelines(f"{json.dumps(data['loss'])}\n" for data in recorder.of("step"))
        return trained


def losses(job: Job, folder: str) -> list[float]:
    """The losses of all steps of the cases with this folder."""
    return [json.loads(line) for line in (Path(job.folder) / folder / "losses.jsonl").read_text().splitlines()]


SERIES = TrainerSpec(
    name="series", summary="trains a series", options=Cases, factory="zero_series:Series", needs="nothing"
)
