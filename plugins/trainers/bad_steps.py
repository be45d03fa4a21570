"""When a step is bad, which examples caused it, and whether the training stops or drops the step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from modelwright.core.api import Job, ModelwrightError
from modelwright.core.api.wording import listed
from modelwright.plugins.trainers.batches.corpus import Corpus
from modelwright.plugins.trainers.batches.micro_batches import Assignment
from modelwright.plugins.trainers.checkpoints import Progress
from modelwright.plugins.trainers.ranks import Ranks

# Number of losses whose median a spike is measured against; with fewer losses there are no spikes.
WINDOW = 32
# A training with this many consecutive bad steps is stopped in any case.
MOST_IN_A_ROW = 10
# Number of examples that an error names.
_NAMED = 8
# Smallest median to compare with, in nats: when the data are learned by heart, any loss would be a spike.
_LEAST_MEDIAN = 0.01


class BadSteps:
    """Watches the steps of a training.

    Args:
        corpus: what is trained on.
        job: its settings say whether a bad step stops the training.
        ranks: the processes that train together.
    """

    def __init__(self, corpus: Corpus, job: Job, ranks: Ranks) -> None:
        self._corpus = corpus
        self._job = job
        self._ranks = ranks

    @staticmethod
    def recent(losses: Sequence[float], loss: float) -> tuple[float, ...]:
        """The losses that the next one is compared with: the last ones, and `loss`."""
        return (*losses, loss)[-WINDOW:]

    def bad_loss(self, loss: float, progress: Progress) -> str | None:
        """Why the loss of a step is bad, as a clause; None if it is not."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        factor = self._job.settings.loss_spike
        if not factor or len(progress.recent) < WINDOW:
            return None
        median = max(statistics.median(progress.recent), _LEAST_MEDIAN)
        return (
            f"the loss is {loss:.4f}, {loss / median:.1f} times the recent median {median:.4f}"
            if loss > factor * median
            else None
        )

    def dropped(
        self, step: int, why: str, assignments: Sequence[Assignment], losses: Sequence[float], progress: Progress
    ) -> None:
        """Report the examples of a step whose gradient was dropped; all processes must call this together.

        Args:
            step: its number.
            why: the reason, as a clause.
            assignments: what this process took of the step.
            losses: of each of these.
            progress: before the step.

        Raises:
            ModelwrightError: the settings say to stop, or there were too many consecutive bad steps.
        """
        not_finite = [taken for taken, loss in zip(assignments, losses, strict=True) if not math.isfinite(loss)]
        ids = [example for named in self._ranks.gathered(self._ids(not_finite)) for example in named]
        if not ids:
            ids = [example for named in self._ranks.gathered(self._ids(assignments)) for example in named]
        self._job.emit("bad_step", {"step": step, "why": why, "examples": ids})
        what = f"step {step}: {why} in a batch with the examples {listed(ids, _NAMED)}"
        if self._job.settings.on_bad_step == "stop":
            raise ModelwrightError(
                f"{what}: lower learning_rate, raise warmup, check the data, or drop such steps with [train] "
                'on_bad_step = "skip"'
            )
        if progress.bad_in_a_row + 1 >= MOST_IN_A_ROW:
            raise ModelwrightError(
                f"{what}, the {MOST_IN_A_ROW}th bad step in a row: lower learning_rate, raise warmup, or check the data"
            )

    def _ids(self, assignments: Sequence[Assignment]) -> list[str]:
        return [example for taken in assignments if taken.counts for example in self._corpus.read(taken).ids]
