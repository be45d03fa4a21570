"""The training loop that the trainers share.

The loss of an optimiser step is the mean cross-entropy over the step's supervised tokens, however the step is split
into micro-batches and over processes: their token losses are summed, and each sum is divided by the step's total.

Everything random is a function of (seed, step, process): the order of the sequences, and dropout, whose generator is
seeded anew at each step. A checkpoint therefore holds weights, optimiser and progress, and no state of a generator.

Several processes run this loop in lockstep. What they decide (to stop, to drop a step) they decide together, from
numbers that all of them have.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from attrs import asdict, evolve, frozen

from modelwright.core.api import Job, ModelwrightError, Trained
from modelwright.plugins.trainers import schedule
from modelwright.plugins.trainers.bad_steps import Health
from modelwright.plugins.trainers.batches.batch_layout import lay_end_to_end
from modelwright.plugins.trainers.batches.data import Corpus, MicroBatch, Numbers, Part, Plan
from modelwright.plugins.trainers.batches.isolation import check_isolation
from modelwright.plugins.trainers.checkpoints import (
    Checkpoint,
    Checkpoints,
    Progress,
    shared_folder,
    write_finished,
)
from modelwright.plugins.trainers.meter import Meter
from modelwright.plugins.trainers.model.forward import SupervisedLogits, attention_of
from modelwright.plugins.trainers.preflight import preflight
from modelwright.plugins.trainers.ranks import Ranks
from modelwright.plugins.trainers.strategy import Strategy

# With how many packs a model must show that it keeps documents apart.
_CHECKED_PACKS = 4


@frozen
class StepResult:
    """What one optimiser step did, over all processes.

    Attributes:
        loss: mean over its supervised tokens, in nats; None where it is no finite number.
        grad_norm: the gradient's 2-norm before clipping; None where the step was dropped.
        learning_rate: what was stepped with.
        tokens: tokens that went through the model, padding aside.
        supervised: tokens that were learnt.
        order: a digest of the numbers of its sequences.
        by_source: the mean loss of each source that tokens came from, in nats, where there are several.
    """

    loss: float | None
    grad_norm: float | None
    learning_rate: float
    tokens: int
    supervised: int
    order: str
    by_source: dict[str, float]


class Loop:
    """One training job, in one of its processes.

    Args:
        job: what to train.
        strategy: how.
        corpus: the job's tokens.
        checkpoints: of the job.
        holdout: its held-out tokens, where there are any.
        micro_batch_tokens: the most tokens of a micro-batch where the settings give no size.
    """

    def __init__(
        self,
        job: Job,
        strategy: Strategy,
        corpus: Corpus,
        checkpoints: Checkpoints,
        *,
        holdout: Corpus | None = None,
        micro_batch_tokens: int,
    ) -> None:
        self.job = job
        self.settings = job.settings
        self.strategy = strategy
        self.ranks = strategy.ranks
        self.corpus = corpus
        self.plan = Plan(corpus, job.settings, seed=job.seed)
        self.warmup = schedule.warmup_steps(self.plan.steps, job.settings.warmup)
        self.holdout = holdout
        self.checkpoints = checkpoints
        self.health = Health(corpus, job, self.ranks)
        self.logits = SupervisedLogits(strategy.model, strategy.forward)
        length = corpus.tokens / max(1, corpus.examples)
        self.meter = Meter(strategy.model, strategy.device, strategy.precision, length=length, ranks=self.ranks)
        self._micro_batch_tokens = micro_batch_tokens
        self._end_to_end = False
        self._planned: dict[int, list[Part]] = {}

    def run(self, newest: Checkpoint | None) -> Trained:
        """Train to the end, or until someone asks to stop; then a checkpoint of the last whole step is left.

        Args:
            newest: what to go on from.

        Raises:
            ModelwrightError: loss or gradient are no numbers any more, or the model mixes the documents of a pack.
        """
        began = time.perf_counter()
        rows = [row for corpus in (self.corpus, self.holdout) if corpus is not None for row in corpus.varied()]
        self._end_to_end = lay_end_to_end(self.strategy, self.logits, rows, self.ranks, asked=self.job.attention)
        self._emit_started()
        self._check_isolation()
        if newest is None and self.settings.preflight:
            preflight(self)
        progress = self._resume(newest)
        saved = progress.step
        self.strategy.model.train()
        while not self._is_over(progress):
            further = self._advance(progress)
            if further is None:
                # The optimiser has not stepped: weights and states are those of the last step still.
                if progress.step > saved:
                    self._checkpoint(progress)
                return self._trained(progress, finished=False)
            progress = further
            due = progress.step % self.settings.checkpoint_every == 0
            if due or progress.step == self.plan.steps:
                progress = self._measure_holdout(progress)
            if self._is_over(progress):
                break
            stop = self.ranks.any(self.job.stopping())
            if due or stop:
                self._checkpoint(progress)
                saved = progress.step
            if stop:
                return self._trained(progress, finished=False)
        return self._finish(progress, began)

    def _is_over(self, progress: Progress) -> bool:
        patience = self.settings.early_stopping
        return progress.step >= self.plan.steps or (patience is not None and progress.without_better >= patience)

    def _finish(self, progress: Progress, began: float) -> Trained:
        best = progress.best_step
        if self.settings.early_stopping is not None and best not in (None, progress.step):
            assert best is not None
            checkpoint = self.checkpoints.at(best)
            if checkpoint is None:
                raise ModelwrightError(
                    f"{self.checkpoints.folder}: the checkpoint of step {best}, which has the lowest held-out loss, is "
                    "damaged or gone: take [train] early_stopping out for the last step's model, or train anew"
                )
            self.strategy.load(checkpoint.path, checkpoint.layout)
            progress = evolve(progress, loss=checkpoint.progress.loss, holdout_loss=progress.best_holdout_loss)
            self.job.emit("best", {"best_step": best, "holdout_loss": progress.holdout_loss})
        with shared_folder(self.ranks, self.job.output) as folder:
            self.strategy.export(folder)
        trained = self._trained(progress, finished=True)
        if self.ranks.first:
            write_finished(self.job, trained)
        totals = {"step": progress.step, "tokens": progress.tokens, "loss": progress.loss, "skipped": progress.skipped}
        self.job.emit(
            "finished",
            totals | {"holdout_loss": progress.holdout_loss, "seconds": round(time.perf_counter() - began, 3)},
        )
        return trained

    def _emit_started(self) -> None:
        facts: dict[str, Any] = {
            "steps": self.plan.steps,
            "examples": self.corpus.examples,
            "sequences": len(self.corpus.sequences),
            "skipped": self.corpus.skipped,
            "tokens": self.corpus.tokens,
            "epochs": round(self.plan.count / len(self.corpus.sequences), 4),
            "processes": self.ranks.size,
        }
        facts |= {"attention": attention_of(self.strategy.model)}
        self.job.emit("started", facts | self.meter.facts() | self.strategy.facts())

    def _check_isolation(self) -> None:
        # Every process checks the same packs: at ZeRO's stage 3 a forward pass is theirs together.
        packed = self.corpus.packed(self.corpus.sequences)[:_CHECKED_PACKS]
        for part in self.corpus.parts(
            packed, Ranks(), size=self.settings.micro_batch_size, tokens=self._micro_batch_tokens
        ):
            packs = [self.corpus.documents(pack) for pack in part.sequences.tolist()]
            check_isolation(self.strategy, self.logits, packs)

    def _resume(self, newest: Checkpoint | None) -> Progress:
        if newest is None:
            if self.checkpoints.begun_before:
                # An earlier attempt left events and nothing to go on from: readers drop what it said.
                self.job.emit("resumed", {"step": 0})
            return Progress()
        self.strategy.load(newest.path, newest.layout)
        self.job.emit("resumed", {"step": newest.progress.step})
        return newest.progress

    def _advance(self, progress: Progress) -> Progress | None:
        began = time.perf_counter()
        step = progress.step + 1
        result = self.step(progress)
        if result is None:
            return None
        event: dict[str, Any] = {"step": step, "steps": self.plan.steps, **asdict(result)}
        self.job.emit("step", event | self.meter.measured(result.tokens, result.supervised, began))
        further = evolve(progress, step=step, tokens=progress.tokens + result.tokens)
        if result.grad_norm is None or result.loss is None:
            return evolve(further, skipped=progress.skipped + 1, bad_in_a_row=progress.bad_in_a_row + 1)
        recent = self.health.remembered(progress.recent, result.loss)
        return evolve(further, loss=result.loss, recent=recent, bad_in_a_row=0)

    def step(self, progress: Progress) -> StepResult | None:
        """Do the optimiser step after `progress`; None where someone asked to stop before its end.

        A step left so changes nothing but the gradients; done again, it comes out the same.

        Raises:
            ModelwrightError: loss or gradient are bad, and the settings do not say to drop such a step.
        """
        step = progress.step + 1
        torch.manual_seed(_step_seed(self.job.seed, step, self.ranks.rank))
        sequences = self.plan.sequences(step)
        supervised = self.corpus.supervised(sequences)
        parts = self._parts(step)
        following = self._parts(step + 1)[0] if step < self.plan.steps else None
        summed: list[torch.Tensor] = []
        tokens, names = 0, self.corpus.sources if len(self.corpus.sources) > 1 else []
        sources = torch.zeros(2, len(names), device=self.strategy.device)  # losses, and how many they are of
        for part, batch in self._batches(self.corpus, parts, following):
            # A large batch on a slow machine takes hours, and whoever asks waits for minutes.
            if self.ranks.any(self.job.stopping()):
                return None
            loss, each = self._loss(batch, part)
            loss = loss / supervised
            self.strategy.backward(loss)
            if names and part.counts:
                sources[0].index_add_(0, batch.sources, each)
                sources[1].index_add_(0, batch.sources, torch.ones_like(each))
            summed.append(loss.detach())
            tokens += batch.tokens if part.counts else 0
        rate = self._rate(step)
        # One transfer a step: reading each number alone would wait for the device each time.
        numbers = torch.cat([torch.stack(summed), sources.flatten()]).tolist()
        losses, of_sources = numbers[: len(parts)], numbers[len(parts) :]
        total, tokens_of_all, *of_all = self.ranks.sums([math.fsum(losses), tokens, *of_sources])
        bad = self.health.bad_loss(total, progress)
        if bad:
            self._poison(parts[-1])
        norm = self.strategy.step(rate)
        if bad is None and not math.isfinite(norm):
            bad = f"the gradient's norm is {norm}"
        if bad:
            self.health.dropped(step, bad, parts, losses, progress)
        return StepResult(
            loss=total if math.isfinite(total) else None,
            grad_norm=None if bad else norm,
            learning_rate=rate,
            tokens=round(tokens_of_all),
            supervised=supervised,
            order=hashlib.sha256(sequences.tobytes()).hexdigest()[:16],
            by_source=_means(names, of_all),
        )

    def _rate(self, step: int) -> float:
        return self.settings.learning_rate * schedule.factor(
            step, steps=self.plan.steps, warmup=self.warmup, schedule=self.settings.schedule
        )

    def _loss(self, batch: MicroBatch, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of a micro-batch, and each token's; without a gradient where another process counts it."""
        with self.strategy.autocast():
            loss, each = self.logits.summed_loss(batch)
        return loss if part.counts else loss * 0.0, each

    def _poison(self, part: Part) -> None:
        """Make the step's gradient no number, which every strategy drops: none has another way to forget it."""
        (_, batch), *_ = self._batches(self.corpus, [part])
        self.strategy.backward(self._loss(batch, part)[0] * math.nan)

    def split(self, corpus: Corpus, sequences: Numbers) -> list[Part]:
        """What this process takes of these sequences, pass after pass."""
        return corpus.parts(
            sequences,
            self.ranks,
            size=self.settings.micro_batch_size,
            tokens=self._micro_batch_tokens,
            end_to_end=self._end_to_end,
        )

    def _parts(self, step: int) -> list[Part]:
        """What this process takes of a step; the next one's is asked for before its time, to be read ahead."""
        if step not in self._planned:
            self._planned = {planned: parts for planned, parts in self._planned.items() if planned == step - 1}
            self._planned[step] = self.split(self.corpus, self.plan.sequences(step))
        return self._planned[step]

    def _batches(
        self, corpus: Corpus, parts: Sequence[Part], following: Part | None = None
    ) -> Iterator[tuple[Part, MicroBatch]]:
        for part, batch in corpus.batches(parts, following):
            yield part, batch.to(self.strategy.device)

    def rehearse(self, sequences: Numbers, *, stepping: bool) -> None:
        """The two longest micro-batches of these sequences forward and back, and a step unless told not to take it."""
        torch.manual_seed(_step_seed(self.job.seed, 0, self.ranks.rank))
        self.strategy.model.train()
        parts = self.split(self.corpus, sequences)[:2]
        for part, batch in self._batches(self.corpus, parts):
            self.strategy.backward(self._loss(batch, part)[0] / self.corpus.supervised(sequences))
        if not stepping:
            self._poison(parts[-1])
        self.strategy.step(self._rate(1))

    def mean_loss(self, corpus: Corpus, sequences: Numbers) -> float:
        """The mean loss over the supervised tokens of these sequences, without training on them, in nats."""
        total = 0.0
        self.strategy.model.eval()
        with torch.no_grad():
            for part, batch in self._batches(corpus, self.split(corpus, sequences)):
                total += self._loss(batch, part)[0].item()
        self.strategy.model.train()
        return self.ranks.sums([total])[0] / corpus.supervised(sequences)

    def _measure_holdout(self, progress: Progress) -> Progress:
        if self.holdout is None or not len(self.holdout.sequences):
            return progress
        loss = self.mean_loss(self.holdout, self.holdout.sequences)
        self.job.emit("holdout", {"step": progress.step, "loss": loss})
        return progress.measured(loss)

    def _checkpoint(self, progress: Progress) -> None:
        began = time.perf_counter()
        self.checkpoints.save(progress, self.strategy.save, self.strategy.layout)
        self.job.emit("checkpoint", {"step": progress.step, "seconds": round(time.perf_counter() - began, 3)})

    def _trained(self, progress: Progress, *, finished: bool) -> Trained:
        return Trained(
            finished=finished,
            step=progress.step,
            steps=self.plan.steps,
            loss=progress.loss,
            holdout_loss=progress.holdout_loss,
        )


def _means(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """The means of sources, from all their sums and then all their counts; without those that did not occur."""
    totals, counts = sums[: len(names)], sums[len(names) :]
    means = ((name, total / count) for name, total, count in zip(names, totals, counts, strict=True) if count)
    return {name: mean for name, mean in means if math.isfinite(mean)}


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Another one for each process, or all of them would drop the same units out."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
