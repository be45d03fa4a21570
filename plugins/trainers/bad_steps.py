"""When a step is bad, which examples are to blame, and what becomes of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from modelwright.core.api import Job, ModelwrightError
from modelwright.plugins.trainers.batches.data import Corpus, Part
from modelwright.plugins.trainers.checkpoints import Progress
from modelwright.plugins.trainers.ranks import Ranks

# A spike is measured against the median of so many losses; before there are so many, none is seen.
WINDOW = 32
# So many bad steps one after the other are no accident any more.
MOST_IN_A_ROW = 10
_SHOWN = 8
# Below such a loss, in nats, everything is known by heart, and any example that is not would be a spike.
_LEARNT = 0.01


class Health:
    """Watches the steps of a training.

    Args:
        corpus: what is trained on.
        job: its settings say what happens to a bad step.
        ranks: the processes that train together.
    """

    def __init__(self, corpus: Corpus, job: Job, ranks: Ranks) -> None:
        self._corpus = corpus
        self._job = job
        self._ranks = ranks

    @staticmethod
    def remembered(recent: Sequence[float], loss: float) -> tuple[float, ...]:
        """The losses that the next one is measured against."""
        return (*recent, loss)[-WINDOW:]

    def bad_loss(self, loss: float, progress: Progress) -> str | None:
        """What is wrong with the loss of a step, as a clause; None where nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        factor = self._job.settings.loss_spike
        if not factor or len(progress.recent) < WINDOW:
            return None
        usual = max(statistics.median(progress.recent), _LEARNT)
        return (
            f"the loss is {loss:.4f}, {loss / usual:.1f} times the usual {usual:.4f}" if loss > factor * usual else None
        )

    def dropped(self, step: int, why: str, parts: Sequence[Part], losses: Sequence[float], progress: Progress) -> None:
        """Name the examples of a step whose gradient was dropped; all processes have to come here.

        Args:
            step: its number.
            why: what was wrong, as a clause.
            parts: this process's micro-batches.
            losses: of each of them.
            progress: before the step.

        Raises:
            ModelwrightError: the settings say to stop, or there were too many such steps.
        """
        wrong = [part for part, loss in zip(parts, losses, strict=True) if not math.isfinite(loss) and part.counts]
        named = self._ranks.gathered(self._ids(wrong))
        ids = [example for each in named for example in each]
        if not ids:
            ids = [example for each in self._ranks.gathered(self._ids(parts)) for example in each]
        self._job.emit("bad_step", {"step": step, "why": why, "examples": ids})
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        if self._job.settings.on_bad_step == "stop":
            raise ModelwrightError(
                f"step {step}: {why}, in the examples {shown}: lower learning_rate, lengthen warmup, look at the data, "
                'or drop such steps with [train] on_bad_step = "skip"'
            )
        if progress.bad_in_a_row + 1 >= MOST_IN_A_ROW:
            raise ModelwrightError(
                f"step {step}: {why}, in the examples {shown}; it is the {MOST_IN_A_ROW}th such step one after the "
                "other: lower learning_rate, lengthen warmup, or look at the data"
            )

    def _ids(self, parts: Sequence[Part]) -> list[str]:
        return [example for part in parts if part.counts for example in self._corpus.read(part).ids]
